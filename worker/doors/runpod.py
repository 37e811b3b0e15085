"""RunPod's own worker loop with two things more: jobs can tell their progress, and the end loses no job.

At SIGTERM the SDK's loop lets its two long polls run on, for up to 90 s. What the one for jobs still brings, once the
queue was seen empty, it never runs; the one for stop signals it awaits with nothing left to stop. Here both end at
once, and a job that had come already is run like any other.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import runpod.serverless
from runpod.serverless.modules import rp_scale
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.rp_job import handle_job

from worker.progress import Message

Job = dict[str, Any]
Handler = Callable[..., Awaitable[dict[str, Any]]]
"""Called with a job, and with `send=` for its progress where the job comes from the platform's queue."""


def start(handler: Handler, max_concurrency: int) -> None:
    """Start the SDK in the way that its arguments and the environment ask for; returns when told to stop."""
    rp_scale.JobScaler = RunPodLoop
    # Constant: at every change of it the SDK waits until all jobs in flight have ended.
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: max_concurrency})


class RunPodLoop(rp_scale.JobScaler):  # type: ignore[misc] # the SDK has no types
    """The loop that takes jobs, runs them and listens for stop signals, until SIGTERM or SIGINT."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._took_last = asyncio.Event()
        self.jobs_handler = _handle_job

    async def get_jobs(self, session: Any) -> None:
        try:
            await super().get_jobs(Polls(session, self._shutdown_event))
        finally:
            self._took_last.set()

    async def run_jobs(self, session: Any) -> None:
        await super().run_jobs(session)
        await self._took_last.wait()
        await super().run_jobs(session)  # what the last poll brought after the first call had seen an empty queue

    async def monitor_stop_signals(self, session: Any) -> None:
        await super().monitor_stop_signals(Polls(session, self._shutdown_event))


class Polls:
    """A client session for long polls: once `ended` is set, one that has no answer yet ends as by a timeout.

    One whose answer has begun to arrive is read to its end: it may hold jobs.
    """

    def __init__(self, session: Any, ended: asyncio.Event) -> None:
        self._session, self._ended = session, ended

    @asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[Any]:
        answer = asyncio.ensure_future(self._session.get(url))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({answer, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if not answer.done():
                answer.cancel()
        if not answer.done():
            raise TimeoutError
        async with answer.result() as response:
            yield response


async def _handle_job(session: Any, config: dict[str, Any], job: Job) -> None:
    handler = functools.partial(config["handler"], send=functools.partial(_send_progress, session, job))
    await handle_job(session, {**config, "handler": handler}, job)


async def _send_progress(session: Any, job: Job, message: Message) -> None:
    """What the SDK's `progress_update` sends; that does it from a thread that nobody can wait for."""
    await send_result(session, {"status": "IN_PROGRESS", "output": message}, job)
