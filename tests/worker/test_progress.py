import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_core.request import Observe, Progress
from worker import progress as progressing
from worker.progress import reporting


def at(step: int, preview: Callable[[], np.ndarray] = lambda: np.full((8, 16, 3), 200, np.uint8)) -> Progress:
    return Progress(step, 10, 10 * step, preview)


class Receiver:
    """Collects messages and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.arrived = asyncio.Event()

    async def __call__(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        self.times.append(asyncio.get_running_loop().time())
        self.arrived.set()

    async def next(self) -> dict[str, Any]:
        await self.arrived.wait()
        self.arrived.clear()
        return self.messages[-1]


@asynccontextmanager
async def observed(send: Any, preview: bool = False) -> AsyncIterator[Observe]:
    async with reporting(send, preview, "u") as observe:
        assert observe is not None
        yield observe


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def within_a_minute() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(within_a_minute())


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progressing, "MIN_INTERVAL_S", 0.01)


def test_a_message_has_the_steps_done_and_the_percentage() -> None:
    async def test() -> None:
        receive = Receiver()
        async with observed(receive) as observe:
            observe(at(3))
            assert await receive.next() == {"type": "progress", "step": 3, "steps": 10, "percent": 30}

    run(test)


def test_a_preview_is_a_small_picture() -> None:
    async def test() -> None:
        receive = Receiver()
        async with observed(receive, preview=True) as observe:
            observe(at(3))
            message = await receive.next()
        with Image.open(io.BytesIO(base64.b64decode(message["preview"]))) as image:
            assert image.size == (16, 8)
            assert np.abs(np.asarray(image).astype(int) - 200).max() < 8

    run(test)


def test_only_the_newest_progress_is_sent_and_not_before_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progressing, "MIN_INTERVAL_S", 0.5)

    async def test() -> None:
        receive = Receiver()
        async with observed(receive) as observe:
            running = threading.Thread(target=lambda: [observe(at(step)) for step in (1, 2)])
            running.start()
            running.join()
            assert (await receive.next())["step"] == 2
            observe(at(3))
            observe(at(4))
            assert (await receive.next())["step"] == 4
        assert len(receive.messages) == 2
        assert receive.times[1] - receive.times[0] >= 0.49

    run(test)


def test_progress_observed_just_before_the_loop_waits_is_not_missed(often: None) -> None:
    async def test() -> None:
        receive = Receiver()
        async with observed(receive) as observe:
            running = threading.Thread(target=lambda: [observe(at(step)) for step in range(2_000)])
            running.start()
            while (await receive.next())["step"] != 1_999:
                pass
        steps = [message["step"] for message in receive.messages]
        assert steps == sorted(set(steps))

    run(test)


async def refuse() -> None:
    raise OSError("refused")


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("fail", "error"), [(refuse, "OSError('refused')"), (hang, "TimeoutError()")])
def test_a_message_that_fails_or_hangs_is_logged_and_the_next_one_is_sent(
    often: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fail: Callable[[], Awaitable[None]],
    error: str,
) -> None:
    monkeypatch.setattr(progressing, "SEND_TIMEOUT_S", 0.05)

    async def test() -> None:
        receive = Receiver()

        async def fail_once(message: dict[str, Any]) -> None:
            await receive(message)
            if message["step"] == 1:
                await fail()

        async with observed(fail_once) as observe:
            observe(at(1))
            await receive.next()
            observe(at(2))
            assert (await receive.next())["step"] == 2

    with caplog.at_level("WARNING", "worker"):
        run(test)
    (record,) = caplog.records
    assert record.message == "progress was not sent"
    assert record.fields == {"uid": "u", "error": error}


def test_a_finished_job_waits_for_its_last_message() -> None:
    async def test() -> None:
        events: list[str] = []
        begun = asyncio.Event()

        async def slow(_message: dict[str, Any]) -> None:
            begun.set()
            await asyncio.sleep(0.05)
            events.append("sent")

        async with observed(slow) as observe:
            observe(at(1))
            await begun.wait()
        events.append("closed")
        observe(at(2))
        await asyncio.sleep(0.05)
        assert events == ["sent", "closed"]

    run(test)


def test_a_finished_job_does_not_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progressing, "LAST_SEND_TIMEOUT_S", 0.05)

    async def test() -> None:
        receive = Receiver()
        ended = asyncio.Event()

        async def hang(message: dict[str, Any]) -> None:
            await receive(message)
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async with observed(hang) as observe:
            observe(at(1))
            await receive.next()
        assert ended.is_set()

    run(test)


def test_a_failed_job_does_not_wait_for_its_last_message() -> None:
    async def test() -> None:
        receive = Receiver()

        async def hang(message: dict[str, Any]) -> None:
            await receive(message)
            await asyncio.Event().wait()

        async with observed(hang) as observe:
            observe(at(1))
            await receive.next()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(test)


def test_a_message_is_sent_without_a_preview_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> np.ndarray:
        raise RuntimeError("the device is gone")

    async def test() -> None:
        receive = Receiver()
        async with observed(receive, preview=True) as observe:
            observe(at(1, fail))
            assert await receive.next() == {"type": "progress", "step": 1, "steps": 10, "percent": 10}

    with caplog.at_level("WARNING", "worker"):
        run(test)
    assert [record.message for record in caplog.records] == ["a preview was not rendered"]


def test_without_a_sender_nothing_is_observed() -> None:
    async def test() -> None:
        async with reporting(None, True, "u") as observe:
            assert observe is None

    run(test)


def test_progress_after_the_loop_has_ended_is_ignored() -> None:
    async def test() -> Observe:
        async with observed(Receiver()) as observe:
            return observe

    observe = asyncio.run(test())
    observe(at(1))
