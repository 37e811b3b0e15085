"""The one cache of the project: a mapping of limited size that drops what was used least recently."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(Generic[K, V]):
    """Keeps at most `count` values, whose sizes add up to `capacity` at most; drops the least recently used first.

    A value that alone exceeds the capacity is not kept.
    """

    def __init__(self, count: int, capacity: float = inf, size: Callable[[V], int] = lambda _: 1) -> None:
        self._count, self._capacity, self._size = count, capacity, size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._used = 0

    @property
    def used(self) -> int:
        """The sum of the sizes of all kept values."""
        return self._used

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """The value, which becomes the most recently used one; None if it is not kept."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        size = self._size(value)
        if key in self._values:
            self._used -= self._size(self._values.pop(key))
        if size > self._capacity:
            return
        self._values[key] = value
        self._used += size
        while self._used > self._capacity or len(self._values) > self._count:
            _, oldest = self._values.popitem(last=False)
            self._used -= self._size(oldest)

    def clear(self) -> None:
        self._values.clear()
        self._used = 0
