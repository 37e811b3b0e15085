"""Messages about a job's progress while it is running: at most one a second, without slowing the engine."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from PIL import Image

from sd_core.request import Observe, Progress
from worker.log import log

# Least time from the start of one message to the start of the next.
MIN_INTERVAL_S = 1.0

# Time limit for rendering a preview and sending its message together.
SEND_TIMEOUT_S = 5.0

# How long a finished job waits for a message that is still being sent.
LAST_SEND_TIMEOUT_S = 2.0

# `{"type": "progress", "step", "steps", "percent"}`, and `preview`, a base64 JPEG, if the job asks for it.
Message = dict[str, Any]

# Sends one message to the job's client. It may fail, hang and be cancelled.
Send = Callable[[Message], Awaitable[None]]


@asynccontextmanager
async def reporting(send: Send | None, preview: bool, uid: str) -> AsyncIterator[Observe | None]:
    """Yields an `Observe` for the engine, whose progress is sent while the context is open; None without a `send`.

    Nothing is sent after the context is closed. A message that fails is logged, and delays closing by
    `LAST_SEND_TIMEOUT_S` at most; a job that fails or is cancelled does not wait for its last message.
    """
    if send is None:
        yield None
        return
    reporter = _Reporter(send, preview, uid)
    task = asyncio.create_task(reporter.run())
    try:
        yield reporter.observe
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SEND_TIMEOUT_S):
                await reporter.sending.acquire()
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=LAST_SEND_TIMEOUT_S)


class _Reporter:
    """`observe` is called on the engine's thread, everything else runs on the event loop."""

    def __init__(self, send: Send, preview: bool, uid: str) -> None:
        self._send, self._preview, self._uid = send, preview, uid
        self._loop = asyncio.get_running_loop()
        self._newest: Progress | None = None
        self._waiting = False
        self._woken = asyncio.Event()
        self.sending = asyncio.Lock()  # held while a message is being sent

    def observe(self, progress: Progress) -> None:
        """Keep the newest progress; wake the event loop only if it is waiting for one."""
        self._newest = progress
        if self._waiting:
            self._waiting = False
            with suppress(RuntimeError):  # the loop has ended, so nobody waits for this job
                self._loop.call_soon_threadsafe(self._woken.set)

    async def run(self) -> None:
        sent: Progress | None = None
        while True:
            sent = await self._newer_than(sent)
            began = self._loop.time()
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    message = await self._message(sent)
                    async with self.sending:
                        await self._send(message)
            except Exception as error:  # noqa: BLE001 - the job goes on without it
                self._warn("progress was not sent", error)
            await asyncio.sleep(began + MIN_INTERVAL_S - self._loop.time())

    async def _newer_than(self, sent: Progress | None) -> Progress:
        while True:
            self._woken.clear()
            self._waiting = True  # set before the check, so that whatever arrives after the check wakes the loop
            newest = self._newest
            if newest is not None and newest is not sent:
                self._waiting = False
                return newest
            await self._woken.wait()

    async def _message(self, progress: Progress) -> Message:
        message = {"type": "progress", "step": progress.step, "steps": progress.steps, "percent": progress.percent}
        if self._preview:
            try:
                message["preview"] = await asyncio.to_thread(_preview, progress)
            except Exception as error:  # noqa: BLE001 - the numbers are sent without it
                self._warn("a preview was not rendered", error)
        return message

    def _warn(self, what: str, error: Exception) -> None:
        log.warning(what, extra={"fields": {"uid": self._uid, "error": repr(error)}})


def _preview(progress: Progress) -> str:
    """Base64 of a JPEG: the noise of the first steps would make a PNG several times as large."""
    file = io.BytesIO()
    Image.fromarray(progress.preview()).save(file, format="jpeg", quality=85)
    return base64.b64encode(file.getvalue()).decode("ascii")
