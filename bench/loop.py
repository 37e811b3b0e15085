"""A worker in a process of its own, in the real SDK's loop, before a stand-in of the platform: what its clients see."""

import itertools
import json
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.platform import PlatformStandIn, platform
from tests.support.processes import WorkerProcess, environ_without_worker

PATIENCE_S = 600.0  # how long a worker may take to start, or to answer any job, before it counts as stuck
POLL_S = 0.001
# The SDK looks for jobs once a second while it believes that its queue is full; after this long it waits for one.
IDLE_S = 1.5


@dataclass(frozen=True)
class Served:
    """What clients saw of some jobs: the seconds until the last answer, and those of each job, from asked to answered.

    `answers` are the jobs' outputs by uid.
    """

    seconds: float
    latencies: list[float]
    answers: dict[str, dict[str, Any]]

    @property
    def pictures(self) -> int:
        return sum(len(answer.get("images", ("one",))) for answer in self.answers.values())


class Worker:
    """A worker process that has asked the platform for its first job, `ready_s` after it was started."""

    def __init__(self, stand_in: PlatformStandIn, process: WorkerProcess, started: float) -> None:
        self._stand_in, self.process = stand_in, process
        self._wait_for(lambda: bool(stand_in.takes))
        self.ready_s = time.perf_counter() - started

    def serve(self, jobs: Sequence[Mapping[str, Any]], clients: int) -> Served:
        """Has the jobs drawn for so many clients, each of which asks for its next job when it has been answered.

        Every job needs a uid of its own. Raises `RuntimeError` where a job fails, the worker ends or is stuck.
        """
        answered = self._answered(since=len(self._stand_in.posted))
        waiting = deque(jobs)
        asked: dict[str, float] = {}
        latencies: list[float] = []
        answers: dict[str, dict[str, Any]] = {}

        def ask() -> None:
            job = waiting.popleft()
            asked[job["uid"]] = time.perf_counter()
            self._stand_in.add(job["uid"], dict(job))

        for _ in range(min(clients, len(jobs))):
            ask()
        while len(answers) < len(jobs):
            output = next(answered)
            uid = output["uid"]
            latencies.append(time.perf_counter() - asked[uid])
            answers[uid] = output
            if waiting:
                ask()
        return Served(time.perf_counter() - min(asked.values()), latencies, answers)

    def _answered(self, since: int) -> Iterator[dict[str, Any]]:
        """The outputs of jobs that end from now on, `since` being what was posted before; progress is passed over."""
        posted = self._stand_in.posted
        for position in itertools.count(since):
            self._wait_for(lambda position=position: len(posted) > position)  # type: ignore[misc]
            body = json.loads(posted[position])
            if "error" in body:
                raise RuntimeError(f"a job failed: {body['error']}")
            if body.get("status") != "IN_PROGRESS":
                yield body["output"]

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self.process.wait_for(condition, PATIENCE_S, POLL_S)


@contextmanager
def running(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Worker]:
    """`python ARGUMENTS` once it has asked for its first job; of the worker's variables it has these alone."""
    with platform() as stand_in, tempfile.TemporaryDirectory() as folder:
        environ = {**environ_without_worker(), **stand_in.environ(), **environment}
        started = time.perf_counter()
        process = WorkerProcess(["-u", *arguments], environ, Path(folder) / "printed.txt")
        try:
            yield Worker(stand_in, process, started)
        finally:
            process.kill()


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile: the smallest value that 95 in 100 do not exceed."""
    ordered = sorted(seconds)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return {"median": round(statistics.median(ordered), 4), "p95": round(p95, 4)}
