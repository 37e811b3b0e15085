"""A job whose task is cancelled, at each stage of its life."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from worker.api import response as responding
from worker.log import configure
from worker.service import Service, run_job


def test_cancelling_a_job_cancels_its_future(service: Service, engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    engine.hangs = True

    async def cancel_while_drawing() -> None:
        task = asyncio.create_task(run_job({"id": "1", "input": {"prompt": "x", "uid": "u"}}, service))
        assert await asyncio.to_thread(engine.submitted.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_while_drawing())
    assert engine.hanging.cancelled()
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["outcome"], line["uid"]) == ("cancelled", "u")


def test_cancelling_a_job_while_its_files_are_looked_for_ends_it(
    service: Service, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.hangs = True
    begun, cancelled, submit = threading.Event(), threading.Event(), engine.submit

    def submit_slowly(*arguments: Any) -> Any:
        begun.set()
        assert cancelled.wait(60)
        return submit(*arguments)

    monkeypatch.setattr(engine, "submit", submit_slowly)

    async def cancel_while_submitting() -> None:
        task = asyncio.create_task(run_job({"id": "1", "input": {"prompt": "x"}}, service))
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()

    asyncio.run(cancel_while_submitting())
    service.encoders.shutdown()
    assert engine.hanging.cancelled()


def test_cancelling_a_job_while_it_is_encoded_stores_nothing(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, cancelled = threading.Event(), threading.Event()
    real = responding.encode

    def encode_slowly(*arguments: Any) -> bytes:
        begun.set()
        assert cancelled.wait(60)
        return real(*arguments)

    monkeypatch.setattr(responding, "encode", encode_slowly)

    async def cancel_while_encoding() -> None:
        task = asyncio.create_task(run_job({"id": "1", "input": {"prompt": "x"}}, service))
        assert await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()

    asyncio.run(cancel_while_encoding())
    service.encoders.shutdown()
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
