"""How far a job is, told while it is drawn: at most once a second, and never at the drawing's expense."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from PIL import Image

from sd_core.request import Observe, Progress
from worker.log import log

INTERVAL_S = 1.0
"""From the beginning of one message to that of the next, at least."""

POST_S = 5.0
"""How long drawing a preview and sending a message may take together."""

LAST_S = 2.0
"""How long a job that is done waits for a message that is still being sent."""

Message = dict[str, Any]
"""`{"type": "progress", "step", "steps", "percent"}`, and `preview`, a base64 JPEG, where the job asks for it."""

Send = Callable[[Message], Awaitable[None]]
"""Sends one message to whoever waits for the job. It may fail, hang and be cancelled."""


@asynccontextmanager
async def reporting(send: Send | None, preview: bool, uid: str) -> AsyncIterator[Observe | None]:
    """While it is open, what the engine tells to the `Observe` that it yields is sent; None without a `send`.

    Nothing is sent any more once it is closed. What goes wrong with a message goes to the log, and delays the closing
    by `LAST_S` at most; a job that fails or is cancelled does not wait for its last message.
    """
    if send is None:
        yield None
        return
    reporter = _Reporter(send, preview, uid)
    task = asyncio.create_task(reporter.run())
    try:
        yield reporter.observe
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_S):
                await reporter.sending.acquire()
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LAST_S)


class _Reporter:
    """`observe` belongs to the drawing thread, everything else to the event loop."""

    def __init__(self, send: Send, preview: bool, uid: str) -> None:
        self._send, self._preview, self._uid = send, preview, uid
        self._loop = asyncio.get_running_loop()
        self._newest: Progress | None = None
        self._waiting = False
        self._woken = asyncio.Event()
        self.sending = asyncio.Lock()
        """Held while a message is on its way."""

    def observe(self, progress: Progress) -> None:
        """Keeps the newest; wakes the event loop only where it waits for one."""
        self._newest = progress
        if self._waiting:
            self._waiting = False
            with suppress(RuntimeError):  # the loop has ended, and with it whoever waited for the job
                self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        told: Progress | None = None
        while True:
            told = await self._newer_than(told)
            began = self._loop.time()
            try:
                async with asyncio.timeout(POST_S):
                    message = await self._message(told)
                    async with self.sending:
                        await self._send(message)
            except Exception as error:  # noqa: BLE001 - the job goes on, whatever became of its progress
                self._warn("progress was not sent", error)
            await asyncio.sleep(began + INTERVAL_S - self._loop.time())

    async def _newer_than(self, told: Progress | None) -> Progress:
        while True:
            self._woken.clear()
            self._waiting = True  # before the look: what comes after it wakes the loop
            newest = self._newest
            if newest is not None and newest is not told:
                self._waiting = False
                return newest
            await self._woken.wait()

    async def _message(self, progress: Progress) -> Message:
        message = {"type": "progress", "step": progress.step, "steps": progress.steps, "percent": progress.percent}
        if self._preview:
            try:
                message["preview"] = await asyncio.to_thread(_preview, progress)
            except Exception as error:  # noqa: BLE001 - the numbers are told without it
                self._warn("a preview was not drawn", error)
        return message

    def _warn(self, what: str, error: Exception) -> None:
        log.warning(what, extra={"fields": {"uid": self._uid, "error": repr(error)}})


def _preview(progress: Progress) -> str:
    """Base64 of a JPEG, because the noise of the first steps would make a PNG several times as large."""
    file = io.BytesIO()
    Image.fromarray(progress.preview()).save(file, format="jpeg", quality=85)
    return base64.b64encode(file.getvalue()).decode("ascii")
