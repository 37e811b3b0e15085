"""Noise that is made before it is asked for."""

import threading
from collections import deque
from collections.abc import Iterator

from torch import Tensor

DEPTH = 3  # tensors that are kept ready: enough for a step of two calls and the next one


class Ahead:
    """The tensors of an iterator, up to `DEPTH` of them made ahead by `fill`, on whatever thread it runs.

    With `started` False nothing is made ahead until the first tensor is taken: perhaps none ever is.
    """

    def __init__(self, tensors: Iterator[Tensor], *, started: bool) -> None:
        self._tensors, self._started = tensors, started
        self._ready: deque[Tensor] = deque()
        self._is_exhausted = False
        self._lock = threading.Lock()  # over the iterator

    @property
    def is_wanted(self) -> bool:
        """Whether there is something to make ahead now."""
        return self._started and not self._is_exhausted and len(self._ready) < DEPTH

    @property
    def is_empty(self) -> bool:
        """Whether a tensor may be taken next that has yet to be made."""
        return self._started and not self._is_exhausted and not self._ready

    def fill(self) -> None:
        """Make tensors until enough are ready."""
        while self.is_wanted:
            with self._lock:
                self._make()

    def take(self) -> Tensor:
        """The next tensor, made here and now if it is not ready. Raises `StopIteration` after the last one."""
        self._started = True
        with self._lock:
            if not self._ready:
                self._make()
            if not self._ready:
                raise StopIteration
            return self._ready.popleft()

    def _make(self) -> None:
        try:
            self._ready.append(next(self._tensors))
        except StopIteration:
            self._is_exhausted = True
