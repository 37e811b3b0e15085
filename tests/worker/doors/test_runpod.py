"""What the worker changes of the SDK, in this process and through a real worker."""

import ast
import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.pictures import picture_of
from tests.support.platform import PlatformStandIn

Start = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]
LONG = {"prompt": "x", "steps": 150, "width": 256, "height": 256, "sampler": "heun"}  # some seconds on any machine


@pytest.fixture(scope="module")
def loop_module() -> Any:
    from worker.doors import runpod as module  # the SDK's import takes a second

    return module


def test_only_one_module_imports_the_sdk() -> None:
    def imports_sdk(path: Path) -> bool:
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
        return any(name.split(".")[0] == "runpod" for name in names)

    files = [
        ROOT / "handler.py",
        *(path for name in ("worker", "builder", "sd_core") for path in (ROOT / name).rglob("*.py")),
    ]
    importing = {path.relative_to(ROOT).as_posix() for path in files if imports_sdk(path)}
    assert importing == {"worker/doors/runpod.py"}


@pytest.fixture
def sdk_logger() -> Iterator[Any]:
    from runpod.serverless.modules.rp_logger import RunPodLogger

    logger = RunPodLogger()
    kept = dict(vars(logger))
    yield logger
    vars(logger).clear()
    vars(logger).update(kept)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
def test_the_sdks_logger_takes_our_level_and_prints_no_picture(
    level: str, sdk_logger: Any, loop_module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loop_module.configure_logger(sdk_logger, level)
    assert sdk_logger.level == loop_module.LEVELS[level]
    sdk_logger.debug(f"job: {'QUJD' * 1000}")
    sdk_logger.error("failed", "job-1")
    printed = capsys.readouterr().out
    assert "QUJD" not in printed
    assert ("4,000 characters of base64" in printed) == (level == "DEBUG")
    assert "job-1 | failed" in printed


class Session:
    """A client session whose server says nothing until it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.hung_up = False

    async def _request(self) -> Any:
        self.asked.set()
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.hung_up = True
            raise
        return _Answer()

    def get(self, _url: str) -> Any:
        return self._request()


class _Answer:
    async def __aenter__(self) -> "_Answer":
        return self

    async def __aexit__(self, *_error: object) -> None:
        pass

    async def read(self) -> str:
        await asyncio.sleep(0.05)
        return "a job"


@asynccontextmanager
async def polling(module: Any) -> AsyncIterator[Any]:
    session, ended = Session(), asyncio.Event()

    async def poll() -> str:
        async with module.Polls(session, ended).get("url") as answer:
            return str(await answer.read())

    task = asyncio.create_task(poll())
    async with asyncio.timeout(60):
        await session.asked.wait()
        yield task, session, ended


def test_an_open_poll_ends_as_by_a_timeout(loop_module: Any) -> None:
    async def test() -> None:
        async with polling(loop_module) as (task, session, ended):
            ended.set()
            with pytest.raises(TimeoutError):
                await task
            await asyncio.sleep(0)
            assert session.hung_up

    asyncio.run(test())


def test_a_poll_whose_answer_has_come_is_read_to_its_end(loop_module: Any) -> None:
    async def test() -> None:
        async with polling(loop_module) as (task, session, ended):
            session.answers.set()
            await asyncio.sleep(0)
            ended.set()
            assert await task == "a job"

    asyncio.run(test())


def test_a_cancelled_poll_hangs_up(loop_module: Any) -> None:
    async def test() -> None:
        async with polling(loop_module) as (task, session, _ended):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
            assert session.hung_up

    asyncio.run(test())


async def run_with_a_job_that_comes_at_the_end(loop: Any) -> list[str]:
    """The ids of the jobs that the loop has run, where its last poll brings one while it is told to stop."""
    ran: list[str] = []
    fetched = asyncio.Event()

    async def fetch(_session: Any, _count: int) -> list[dict[str, Any]]:
        fetched.set()
        await asyncio.sleep(0.5)
        return [{"id": "late", "input": {}}]

    async def handle(_session: Any, _config: Any, job: dict[str, Any]) -> None:
        ran.append(job["id"])

    async def no_stops(_session: Any) -> list[str]:
        return []

    loop.jobs_fetcher, loop.jobs_handler, loop.stop_signals_fetcher = fetch, handle, no_stops
    async with asyncio.timeout(60):
        running = asyncio.create_task(loop.run())
        await fetched.wait()
        loop.kill_worker()
        await running
    return ran


def test_the_job_of_the_last_poll_is_run(loop_module: Any) -> None:
    assert asyncio.run(run_with_a_job_that_comes_at_the_end(loop_module.RunPodLoop({}))) == ["late"]


def test_the_sdks_own_loop_would_lose_it(loop_module: Any) -> None:
    """Where this fails, the SDK runs it itself, and `RunPodLoop.run_jobs` can go."""
    from runpod.serverless.modules.rp_scale import JobScaler

    assert asyncio.run(run_with_a_job_that_comes_at_the_end(JobScaler({}))) == []


@pytest.mark.slow
def test_progress_is_posted_in_order_and_never_after_the_result(start_worker: Start, runpod: PlatformStandIn) -> None:
    worker = start_worker("handler.py", **runpod.environ())
    runpod.add("seen", {**LONG, "preview": True})
    runpod.add("unseen", LONG)
    for job_id in ("seen", "unseen"):
        assert runpod.result(job_id)["output"]["message"] == "success"
    for job_id, keys in (("seen", {"preview"}), ("unseen", set())):
        messages = [message for posted, message in runpod.progress if posted == job_id]
        assert len(messages) >= 2
        steps = [message["step"] for message in messages]
        assert steps == sorted(set(steps))
        for message in messages:
            assert {*message} == {"type", "step", "steps", "percent", *keys}
            assert (message["type"], message["steps"]) == ("progress", 150)
            assert 0 <= message["percent"] <= 100
        assert all(picture_of(message["preview"]).size == (32, 32) for message in messages if keys)
    assert worker.end() == 0
    assert runpod.late == []


@pytest.mark.slow
def test_at_its_end_the_worker_answers_every_job_that_it_was_handed(
    start_worker: Start, runpod: PlatformStandIn
) -> None:
    worker = start_worker("handler.py", **runpod.environ())
    runpod.add("in flight", LONG)
    worker.wait_for(lambda: any(job_id == "in flight" for job_id, _ in runpod.progress))
    worker.wait_for(lambda: sorted(runpod.open_polls) == ["stop", "take"])
    worker.process.send_signal(signal.SIGTERM)
    runpod.add("at once", {"prompt": "x", "steps": 2})
    time.sleep(1)
    runpod.add("later", {"prompt": "x", "steps": 2})
    assert worker.exit_code() == 0
    assert time.monotonic() - runpod.last_result_at < 10
    assert "in flight" in runpod.handed_out
    for job_id in runpod.handed_out:
        assert runpod.result(job_id, seconds=10)["output"]["message"] == "success"
    assert runpod.open_polls == []
    assert "Traceback" not in worker.printed


def test_an_idle_worker_ends_with_its_polls_open(start_worker: Start, runpod: PlatformStandIn) -> None:
    worker = start_worker("handler.py", **runpod.environ())
    worker.wait_for(lambda: sorted(runpod.open_polls) == ["stop", "take"])
    told = time.monotonic()
    assert worker.end() == 0
    assert time.monotonic() - told < 10
    assert runpod.handed_out == []
