"""A stand-in for RunPod's job API on the loopback interface: take, done, stop and ping."""

import asyncio
import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

POD = "pod-1"
KEY = "key-1"
# How long a poll stays open if there is nothing to answer: longer than the SDK waits.
POLL_S = 600.0


class PlatformStandIn:
    """Hands out the jobs that a test adds and records what the worker posts.

    Like the platform's, its polls for jobs and for stop signals stay open until there is something to answer.
    """

    def __init__(self) -> None:
        self.port = 0
        self.open_polls: list[str] = []
        self.handed_out: list[str] = []
        self.progress: list[tuple[str, Any]] = []  # job and message of each post of progress
        self.pings: queue.Queue[dict[str, str]] = queue.Queue()
        self.takes: list[str] = []
        self.posted: list[str] = []
        self.late: list[str] = []  # jobs whose progress was posted after their result
        self.last_result_at = 0.0
        self._answered: set[str] = set()
        self._done: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._results: dict[str, dict[str, Any]] = {}
        self._jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._stops: queue.SimpleQueue[str] = queue.SimpleQueue()

    def add(self, job_id: str, job_input: Any) -> None:
        self._jobs.put({"id": job_id, "input": job_input})

    def stop(self, job_id: str) -> None:
        self._stops.put(job_id)

    def result(self, job_id: str, seconds: float = 300) -> dict[str, Any]:
        """What the worker posted for a job: `output` and perhaps `error`. Raises `queue.Empty` if nothing comes."""
        while job_id not in self._results:
            done, result = self._done.get(timeout=seconds)
            self._results[done] = result
        return self._results[job_id]

    def environ(self) -> dict[str, str]:
        """The environment variables by which the platform gives a worker its addresses."""
        base = f"http://127.0.0.1:{self.port}/v2/endpoint-1"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": POD,
            "RUNPOD_ENDPOINT_ID": "endpoint-1",
            "RUNPOD_AI_API_KEY": KEY,
            # The SDK's own checks need hosts on the internet and a GPU.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        prefix = "/v2/endpoint-1"
        app.router.add_get(prefix + "/job-take/{pod}", self._take_one)
        app.router.add_get(prefix + "/job-take-batch/{pod}", self._take_several)
        app.router.add_get(prefix + "/job-stop/{pod}", self._stop)
        app.router.add_post(prefix + "/job-done/{pod}/{job}", self._take_result)
        app.router.add_get(prefix + "/ping/{pod}", self._ping)
        return app

    async def _take_one(self, request: web.Request) -> web.Response:
        jobs = await self._next(request, 1)
        return web.json_response(jobs[0]) if jobs else web.Response(status=204)

    async def _take_several(self, request: web.Request) -> web.Response:
        jobs = await self._next(request, int(request.query["batch_size"]))
        return web.json_response(jobs) if jobs else web.Response(status=204)

    async def _next(self, request: web.Request, max_jobs: int) -> list[dict[str, Any]]:
        assert request.headers["Authorization"] == KEY
        self.takes.append(request.match_info["pod"])
        await self._wait("take", self._jobs)
        jobs: list[dict[str, Any]] = []
        while not self._jobs.empty() and len(jobs) < max_jobs:
            jobs.append(self._jobs.get())
        self.handed_out += [job["id"] for job in jobs]
        return jobs

    async def _stop(self, _request: web.Request) -> web.Response:
        await self._wait("stop", self._stops)
        if self._stops.empty():
            return web.Response(status=204)
        return web.json_response({"jobsToStop": [self._stops.get()]})

    async def _wait(self, name: str, waiting: queue.SimpleQueue[Any]) -> None:
        """Wait until the queue has something. If the worker disconnects, aiohttp cancels this."""
        self.open_polls.append(name)
        try:
            async with asyncio.timeout(POLL_S):
                while waiting.empty():  # noqa: ASYNC110 - it is filled from another thread
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return
        finally:
            self.open_polls.remove(name)

    async def _take_result(self, request: web.Request) -> web.Response:
        body = (await request.read()).decode("utf-8")
        self.posted.append(body)
        result, job_id = json.loads(body, parse_constant=_refuse_constant), request.match_info["job"]
        if result.get("status") == "IN_PROGRESS":
            if job_id in self._answered:
                self.late.append(job_id)
            self.progress.append((job_id, result["output"]))
        else:
            self._answered.add(job_id)
            self.last_result_at = time.monotonic()
            self._done.put((job_id, result))
        return web.Response(text="ok")

    async def _ping(self, request: web.Request) -> web.Response:
        self.pings.put(dict(request.query))
        return web.Response(text="ok")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@contextmanager
def platform() -> Iterator[PlatformStandIn]:
    stand_in = PlatformStandIn()
    loop = asyncio.new_event_loop()

    async def begin() -> web.AppRunner:
        runner = web.AppRunner(stand_in.application(), handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        stand_in.port = runner.addresses[0][1]
        return runner

    runner = loop.run_until_complete(begin())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
