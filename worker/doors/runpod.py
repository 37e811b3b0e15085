"""RunPod's SDK, and all that depends on its inside: its logger, its worker loop, how a job's progress is posted.

The SDK's loop gets two additions: jobs can post their progress, and a stop loses no job. At SIGTERM the SDK lets its
two long polls run on, for up to 90 s. A job that the one for jobs still brings after the queue was seen empty is never
run, and the one for stop signals is awaited with nothing left to stop. Here both polls end at once, and a job that has
already come is run like any other.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import runpod.serverless
from runpod.serverless.modules import rp_scale
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.rp_job import handle_job
from runpod.serverless.modules.rp_logger import RunPodLogger

from worker.log import without_pictures

if TYPE_CHECKING:  # this module is imported beside the loading of the model, and brings nothing but the SDK
    from worker.progress import Message
    from worker.service import Service

Job = dict[str, Any]
# Called with a job, and with `send=` for its progress if the job comes from the platform's queue.
Handler = Callable[..., Awaitable[dict[str, Any]]]

LEVELS = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR", "CRITICAL": "ERROR"}


def run(handler: Handler, service: "Service") -> int:
    """Run the SDK as its arguments and the environment say, until it ends. Returns the exit code."""
    configure_logger(RunPodLogger(), service.settings.log_level)
    rp_scale.JobScaler = RunPodLoop
    concurrency = service.settings.max_concurrency
    # The value is constant: at every change of it the SDK waits until all jobs in flight have ended.
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda _: concurrency})
    return 0 if service.engine.failure is None else 1


def configure_logger(logger: Any, level: str) -> None:
    """Give the SDK's logger our level, and let it print only the length of pictures.

    At its default level it prints jobs and results as they are.
    """
    write = logger.log

    def log_without_pictures(message: Any, message_level: str = "INFO", job_id: str | None = None) -> None:
        write(without_pictures(str(message)), message_level, job_id)

    logger.log = log_without_pictures
    logger.set_level(LEVELS[level])


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
    """A client session for long polls: once `ended` is set, a poll that has no answer yet ends as if it timed out.

    One whose answer has begun to arrive is read to its end: it may contain jobs.
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


async def _send_progress(session: Any, job: Job, message: "Message") -> None:
    """Post what the SDK's `progress_update` posts from a thread, whose end cannot be awaited."""
    await send_result(session, {"status": "IN_PROGRESS", "output": message}, job)
