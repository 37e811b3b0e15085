"""Noise made on host threads while forwards run, so that a sampler finds it ready."""

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from sd_core.sampling.ahead import Ahead
from sd_core.work import HostTask, answering

Result = TypeVar("Result")


def supplied(asking: Generator[Any, Any, Result], ahead: Ahead) -> Generator[Any, Any, Result]:
    """The same coroutine, with noise made ahead while each of its works is done.

    It is resumed when the next noise is ready. Only if that takes longer than its forward does it wait for the host.
    """
    making: Future[None] | None = None

    def answer(work: Any) -> Generator[Any, Any, Any]:
        nonlocal making
        if ahead.is_wanted and (making is None or making.done()):
            making = yield HostTask(ahead.fill, waits=False)
        result = yield work
        if ahead.is_empty and making is not None:
            yield HostTask(making.result)
        return result

    return answering(asking, answer)
