"""Images that do not fit in memory whole, computed in overlapping tiles."""

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor


def tiled(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: Fraction) -> Tensor:
    """Apply `network` to tiles of x (1, C, H, W), at most `tile` on a side, and blend the outputs where they overlap.

    Neighbouring tiles share at least `overlap` elements. The network multiplies each side by `scale`; H, W, `tile` and
    `overlap` times `scale` must be integers. Statistics over a whole image, such as those of normalization, are taken
    over a tile instead: the result is close to that of the whole image, and equal to it if one tile is enough.
    """
    height, width = x.shape[2:]
    weights = torch.zeros(int(height * scale), int(width * scale), device=x.device)
    total = weights.new_zeros(())
    for top, left in product(_starts(height, tile, overlap), _starts(width, tile, overlap)):
        output = network(x[:, :, top : top + tile, left : left + tile])
        rows, columns = output.shape[2:]
        if total.ndim == 0:
            total = output.new_zeros(1, output.shape[1], *weights.shape)
        region = slice(int(top * scale), int(top * scale) + rows), slice(int(left * scale), int(left * scale) + columns)
        weight = _ramp(rows, overlap * scale, x.device)[:, None] * _ramp(columns, overlap * scale, x.device)
        total[:, :, *region] += weight * output
        weights[region] += weight
    return total / weights


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """The start of each tile along a side; the last tile ends with the side."""
    return [min(start, max(length - tile, 0)) for start in range(0, max(length - overlap, 1), tile - overlap)]


def _ramp(length: int, fade: Fraction, device: torch.device) -> Tensor:
    """Weights of the elements along a side: they rise from both ends to 1, over `fade` elements."""
    distance = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    return (torch.minimum(distance, distance.flip(0)) / float(fade)).clamp(max=1.0)
