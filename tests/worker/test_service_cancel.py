"""A job whose task is cancelled, at each stage of its life."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.api import response as responding
from worker.log import configure
from worker.service import Service, run_job


def test_cancelling_a_job_cancels_its_future(service: Service, engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    engine.hangs = True

    async def cancel_while_running() -> None:
        task = asyncio.create_task(run_job({"id": "1", "input": {"prompt": "x", "uid": "u"}}, service))
        assert await asyncio.to_thread(engine.submitted.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_while_running())
    assert engine.hanging.cancelled()
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["outcome"], line["uid"]) == ("cancelled", "u")


class Held:
    """A function that, once it is called, waits until it is released."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.begun, self.released, self._function = threading.Event(), threading.Event(), function

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        assert self.released.wait(60)
        return self._function(*arguments)


def cancel_during(held: Held, service: Service) -> None:
    """Cancel a job that waits for the function, then release it."""

    async def cancel() -> None:
        task = asyncio.create_task(run_job({"id": "1", "input": {"prompt": "x"}}, service))
        assert await asyncio.to_thread(held.begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.released.set()

    asyncio.run(cancel())
    service.encoders.shutdown()


def test_cancelling_a_job_while_its_files_are_looked_for_ends_it(
    service: Service, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.hangs = True
    held = Held(engine.submit)
    monkeypatch.setattr(engine, "submit", held)
    cancel_during(held, service)
    assert engine.hanging.cancelled()


def test_cancelling_a_job_while_it_is_encoded_stores_nothing(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(responding.encode)
    monkeypatch.setattr(responding, "encode", held)
    cancel_during(held, service)
    assert not (tmp_path / "outputs").exists()


def test_cancelling_a_job_whose_progress_is_being_sent(service: Service, engine: Any) -> None:
    engine.hangs = True
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hang(_message: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def cancel_while_sending() -> None:
        task = asyncio.create_task(run_job({"id": "1", "input": {"prompt": "x"}}, service, hang))
        assert await asyncio.to_thread(engine.submitted.wait, 60)
        engine.report(1)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancel_while_sending())
    assert engine.hanging.cancelled()
