"""What all images of a job share, made by the first that needs it."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """A function that runs once: the first caller runs it, later ones and those at the same time get its result.

    If it raises, it runs again for the next caller.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._made = make, list[T]()
        self._lock = threading.Lock()

    def __call__(self) -> T:
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]
