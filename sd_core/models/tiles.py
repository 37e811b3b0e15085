"""Pictures that memory does not hold whole, in overlapping tiles."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

Place = tuple[slice, slice]
"""Rows and columns."""


class Mosaic:
    """A picture of `size` (H, W) that a network makes tile by tile; neighbours fade into each other.

    Tiles are at most `tile` a side and share at least `overlap` elements. The network makes each side `scale` times as
    long; H, W, `tile` and `overlap` times `scale` must be whole.
    """

    def __init__(self, size: Sequence[int], tile: int, overlap: int, scale: Fraction) -> None:
        self._size, self._fade, self._scale = size, overlap * scale, scale
        rows, columns = ([slice(start, start + tile) for start in _starts(side, tile, overlap)] for side in size)
        self.places: list[Place] = list(product(rows, columns))
        self._total: Tensor | None = None
        self._weights: Tensor | None = None

    def add(self, place: Place, answer: Tensor) -> None:  # (1, C, h, w)
        """The network's answer to the tile at one of the places."""
        if self._total is None or self._weights is None:
            height, width = (int(side * self._scale) for side in self._size)
            self._total = answer.new_zeros(1, answer.shape[1], height, width)
            self._weights = torch.zeros(height, width, device=answer.device)
        rows, columns = answer.shape[2:]
        top, left = (int(part.start * self._scale) for part in place)
        here = slice(top, top + rows), slice(left, left + columns)
        device = answer.device
        weight = _ramp(rows, self._fade, device)[:, None] * _ramp(columns, self._fade, device)
        self._total[:, :, *here] += weight * answer
        self._weights[here] += weight

    def joined(self) -> Tensor:  # (1, C, H * scale, W * scale)
        """The picture, once every place has its answer."""
        assert self._total is not None
        assert self._weights is not None
        return self._total / self._weights


def tiled(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: Fraction) -> Tensor:
    """`network` over tiles of x (1, C, H, W), as `Mosaic` joins them.

    What the network gathers over all of a picture, as normalization does, it gathers over a tile: the answer is near to
    that of the whole, and equal to it where one tile is enough.
    """
    mosaic = Mosaic(x.shape[2:], tile, overlap, scale)
    for place in mosaic.places:
        mosaic.add(place, network(x[:, :, *place]))
    return mosaic.joined()


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side; the last one ends with it."""
    return [min(start, max(length - tile, 0)) for start in range(0, max(length - overlap, 1), tile - overlap)]


def _ramp(length: int, fade: Fraction, device: torch.device) -> Tensor:
    """Rises from both ends to 1, over `fade` elements."""
    place = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    return (torch.minimum(place, place.flip(0)) / float(fade)).clamp(max=1.0)
