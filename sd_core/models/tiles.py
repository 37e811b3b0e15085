"""Images that do not fit in memory whole, computed in overlapping tiles."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

Place = tuple[slice, slice]
"""Rows and columns."""


class Mosaic:
    """An image of size (H, W) that a network computes tile by tile; the outputs are blended where they overlap.

    Tiles are at most `tile` on a side; neighbours share at least `overlap` elements. The network multiplies each side
    by `scale`; H, W, `tile` and `overlap` times `scale` must be integers.
    """

    def __init__(self, size: Sequence[int], tile: int, overlap: int, scale: Fraction) -> None:
        self._size, self._fade, self._scale = size, overlap * scale, scale
        rows, columns = ([slice(start, start + tile) for start in _starts(side, tile, overlap)] for side in size)
        self.places: list[Place] = list(product(rows, columns))
        self._total: Tensor | None = None
        self._weights: Tensor | None = None

    def add(self, place: Place, output: Tensor) -> None:  # (1, C, h, w)
        """Add the network's output for the tile at one of the places."""
        if self._total is None or self._weights is None:
            height, width = (int(side * self._scale) for side in self._size)
            self._total = output.new_zeros(1, output.shape[1], height, width)
            self._weights = torch.zeros(height, width, device=output.device)
        rows, columns = output.shape[2:]
        top, left = (int(part.start * self._scale) for part in place)
        here = slice(top, top + rows), slice(left, left + columns)
        device = output.device
        weight = _ramp(rows, self._fade, device)[:, None] * _ramp(columns, self._fade, device)
        self._total[:, :, *here] += weight * output
        self._weights[here] += weight

    def joined(self) -> Tensor:  # (1, C, H * scale, W * scale)
        """The whole image, after each place was added."""
        assert self._total is not None
        assert self._weights is not None
        return self._total / self._weights


def tiled(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: Fraction) -> Tensor:
    """Apply `network` to tiles of x (1, C, H, W) and blend the outputs where they overlap, as `Mosaic` does.

    Statistics over a whole image, such as those of normalization, are taken over a tile instead: the result is close to
    that of the whole image, and equal to it if one tile is enough.
    """
    mosaic = Mosaic(x.shape[2:], tile, overlap, scale)
    for place in mosaic.places:
        mosaic.add(place, network(x[:, :, *place]))
    return mosaic.joined()


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """The start of each tile along a side; the last tile ends with the side."""
    return [min(start, max(length - tile, 0)) for start in range(0, max(length - overlap, 1), tile - overlap)]


def _ramp(length: int, fade: Fraction, device: torch.device) -> Tensor:
    """Weights of the elements along a side: they rise from both ends to 1, over `fade` elements."""
    distance = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    return (torch.minimum(distance, distance.flip(0)) / float(fade)).clamp(max=1.0)
