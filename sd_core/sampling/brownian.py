"""A Brownian path that is the same however it is asked for: torchsde's `BrownianTree`, number for number.

The path's increment over the whole range is drawn first. Every interval splits in its middle, where the increment of
the left half is drawn given that of the whole (a Brownian bridge); the numbers of a split depend on its place alone.
Source: Kidger et al. 2021, "Efficient and Accurate Gradients for Neural SDEs", section 4, and torchsde.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import Tensor

DIGITS = 6  # to which times are rounded, so the tree is about 24 levels deep
POOL_SIZE = 24  # of numpy's seed sequences, in words
KEPT = 64  # increments that are kept: those around the last interval, which the next one begins with

Node = tuple[int, int]
"""An interval's number within its depth, from the left, and its depth."""


@dataclass(frozen=True)
class _Place:
    """A node with its interval of time."""

    node: Node
    start: float
    end: float

    @property
    def middle(self) -> float:
        return round(0.5 * (self.end + self.start), DIGITS)

    def half(self, side: int) -> "_Place":
        """The left (0) or right (1) half."""
        index, depth = self.node
        start, end = (self.middle, self.end) if side else (self.start, self.middle)
        return _Place((2 * index + side, depth + 1), start, end)


class BrownianTree:
    """A path of tensors of one shape, float32, over the times from `low` to `high`, low < high.

    Not safe for use by several threads at once.
    """

    def __init__(self, seed: int, low: float, high: float, shape: tuple[int, ...]) -> None:
        self._seed, self._shape = seed, shape
        self._root = _Place((0, 0), round(low, DIGITS), round(high, DIGITS))
        whole = _seeds(seed, (), 3)[0]
        self._whole = self._normal(whole) * sqrt(high - low)
        self._increments: OrderedDict[Node, Tensor] = OrderedDict()

    def increment(self, start: float, end: float) -> Tensor:
        """W(end) - W(start); times beyond the path are its ends. A sum over the largest nodes in between."""
        low, high = (min(max(time, self._root.start), self._root.end) for time in (start, end))
        nodes = self._between(self._root, self._whole, round(low, DIGITS), round(high, DIGITS))
        total = next(nodes, None)
        if total is None:
            return torch.zeros(self._shape)
        for increment in nodes:
            total = total + increment
        return total

    def noise(self, sigma: float, sigma_next: float) -> Tensor:
        """Normal noise of variance 1 from the path: k-diffusion's `BrownianTreeNoiseSampler`, levels being times.

        Levels are rounded to float32, as they are there.
        """
        start, end = torch.tensor([sigma, sigma_next], dtype=torch.float32).unbind()
        low, high = sorted((float(start), float(end)))
        increment = self.increment(low, high) * (1 if start < end else -1)
        return increment / (end - start).abs().sqrt()

    def _between(self, place: _Place, increment: Tensor, start: float, end: float) -> Iterator[Tensor]:
        """The increments of the largest nodes of a place in an interval of it, left to right."""
        if start >= end:
            return
        if (start, end) == (place.start, place.end):
            yield increment
            return
        left = self._left(place, increment)
        if start < place.middle:
            yield from self._between(place.half(0), left, start, min(end, place.middle))
        if end > place.middle:
            yield from self._between(place.half(1), increment - left, max(start, place.middle), end)

    def _left(self, place: _Place, increment: Tensor) -> Tensor:
        """The increment over the left half of a place, given that over the whole of it."""
        if place.node in self._increments:
            self._increments.move_to_end(place.node)
            return self._increments[place.node]
        before, after = place.middle - place.start, place.end - place.middle
        per_length = 1 / (place.end - place.start)
        drawn = self._normal(_seeds(self._seed, place.node, 4)[0])
        left = before * increment * per_length + sqrt(before * after * per_length) * drawn
        self._increments[place.node] = left
        if len(self._increments) > KEPT:
            self._increments.popitem(last=False)
        return left

    def _normal(self, seed: int) -> Tensor:
        return torch.randn(self._shape, generator=torch.Generator().manual_seed(seed))


def _seeds(seed: int, node: tuple[int, ...], count: int) -> list[int]:
    words = np.random.SeedSequence(seed, spawn_key=node, pool_size=POOL_SIZE).generate_state(count)
    return [int(word) for word in words]
