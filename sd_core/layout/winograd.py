"""3x3 convolutions with 4 multiplications for every 9: Winograd's F(2x2, 3x3), as products of packed matrices.

Source: Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural Networks", section 4.1. Each tile of 4x4 inputs is
transformed, multiplied with the transformed kernel entry by entry (sixteen matrix products over all tiles), and
transformed back into 2x2 outputs. In float32 this is at least as exact as the plain sum, which adds more terms. In
bfloat16 the transforms round too, and the whole UNet rounds a little more than diffusers' (`bench.step`).
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.layout import onednn

# Input and output channels; with fewer, the transforms cost more than the multiplications that they save.
MIN_CHANNELS = 256

# Memory of the matrices, relative to the kernel's.
GROWTH = 16 / 9

# Tiles, of one or several images, that are computed together: enough for a fast product, few enough for the cache.
TILES = 512


def suits(layer: nn.Conv2d) -> bool:
    """Whether a layer can be computed this way and is faster for it."""
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
    )


def packed(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The sixteen matrices, packed in `dtype`, of a kernel (out_channels, in_channels, 3, 3)."""
    weight = weight.detach()
    taps = torch.empty(3, 3, *weight.shape[:2]).copy_(weight.permute(2, 3, 0, 1))  # (3, 3, out_channels, in_channels)
    return tuple(onednn.packed_matrix(entry.to(dtype)) for row in _of_kernel(taps) for entry in _of_kernel(row))


def convolution(
    x: Tensor, matrices: Sequence[Tensor], bias: Tensor | None, padding: tuple[int, int], add: Tensor | None = None
) -> Tensor:  # (B, C, H, W)
    """The convolution of x with the kernel of these matrices, plus `add`.

    `padding` counts the rows and columns of zeros on each side. `add` is (B, out_channels, H', W') or
    (B, out_channels, 1, 1).
    """
    pad_y, pad_x = padding
    batch, _, height, width = x.shape
    height, width = height + 2 * pad_y - 2, width + 2 * pad_x - 2  # of the output
    tall, wide = (height + 1) // 2, (width + 1) // 2  # in tiles
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad_x, pad_x + width % 2, pad_y, pad_y + height % 2))  # (B, H, W, C)
    out = x.new_empty(batch, 2 * tall, 2 * wide, matrices[0].shape[0])
    for images, band in _slices(batch, tall, wide):
        inputs = padded[images, 2 * band.start : 2 * band.stop + 2]
        outputs = out[images, 2 * band.start : 2 * band.stop]
        columns = []
        for i, row in enumerate(_of_inputs(inputs, 1)):
            # Entry (1, 1) is part of all four outputs with the sign plus, so it alone carries the bias.
            products = [
                onednn.linear(entry, matrices[4 * i + j], bias if i == j == 1 else None)
                for j, entry in enumerate(_of_inputs(row, 2))
            ]
            columns.append(_to_outputs(products))
        for x_offset, column in enumerate(zip(*columns, strict=True)):
            for y_offset, values in enumerate(_to_outputs(column)):
                outputs[:, y_offset::2, x_offset::2] = values
    answer = out[:, :height, :width].permute(0, 3, 1, 2)
    return answer if add is None else answer.add_(add)


def _slices(batch: int, tall: int, wide: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of rows of tiles, about `TILES` tiles in each pair."""
    rows = max(1, min(tall, TILES // wide))
    images = max(1, TILES // (tall * wide))
    for image in range(0, batch, images):
        for row in range(0, tall, rows):
            yield slice(image, min(image + images, batch)), slice(row, min(row + rows, tall))


def _of_kernel(taps: Tensor) -> tuple[Tensor, ...]:
    """The paper's G, along the first axis, of size 3."""
    first, middle, last = taps.unbind()
    return first, (first + middle + last) / 2, (first - middle + last) / 2, last


def _of_inputs(inputs: Tensor, axis: int) -> tuple[Tensor, ...]:
    """The paper's B, along an axis of size 2 * tiles + 2: tile t reads the four entries from 2 * t on."""
    end = inputs.shape[axis] - 2
    first, second = inputs.narrow(axis, 0, end), inputs.narrow(axis, 2, end)
    a, b = first.unflatten(axis, (-1, 2)).unbind(axis + 1)
    c, d = second.unflatten(axis, (-1, 2)).unbind(axis + 1)
    return a - c, b + c, c - b, b - d


def _to_outputs(products: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The paper's A."""
    a, b, c, d = products
    return a + b + c, b - c - d
