"""Drives the generators of the core in tests: samplers and images."""

from collections.abc import Callable, Generator
from typing import TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


def drive(generator: Generator[Asked, Answer, Result], answer: Callable[[Asked], Answer]) -> tuple[Result, list[Asked]]:
    """Run a generator to its end, answering what it yields; return its result and all that it yielded."""
    asked: list[Asked] = []
    try:
        asked.append(next(generator))
        while True:
            asked.append(generator.send(answer(asked[-1])))
    except StopIteration as stop:
        return stop.value, asked
