"""A worker process in the real SDK's loop, before a stand-in for the platform, measured from its clients' side."""

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

TIMEOUT_S = 600.0  # for a worker to start, and for any job to be answered
POLL_S = 0.001
# The SDK asks for jobs only once a second while it believes that its queue is full; after this time it polls again.
IDLE_S = 1.5


@dataclass(frozen=True)
class Served:
    """Some jobs as their clients measured them: the seconds until the last answer, and the latency of each job.

    `answers` are the jobs' outputs by uid.
    """

    seconds: float
    latencies: list[float]
    answers: dict[str, dict[str, Any]]

    @property
    def images(self) -> int:
        return sum(len(answer.get("images", ("one",))) for answer in self.answers.values())


class Worker:
    """A worker process that has asked the platform for its first job, `ready_s` seconds after its start."""

    def __init__(self, stand_in: PlatformStandIn, process: WorkerProcess, started: float) -> None:
        self._stand_in, self.process = stand_in, process
        self._wait_for(lambda: bool(stand_in.takes))
        self.ready_s = time.perf_counter() - started

    def serve(self, jobs: Sequence[Mapping[str, Any]], clients: int) -> Served:
        """Run the jobs for this number of clients, each of which sends its next job once the last one is answered.

        Every job needs its own uid. Raises `RuntimeError` if a job fails, or the worker ends or is stuck.
        """
        answered = self._answered(since=len(self._stand_in.posted))
        waiting = deque(jobs)
        sent_at: dict[str, float] = {}
        latencies: list[float] = []
        answers: dict[str, dict[str, Any]] = {}

        def send() -> None:
            job = waiting.popleft()
            sent_at[job["uid"]] = time.perf_counter()
            self._stand_in.add(job["uid"], dict(job))

        for _ in range(min(clients, len(jobs))):
            send()
        while len(answers) < len(jobs):
            output = next(answered)
            uid = output["uid"]
            latencies.append(time.perf_counter() - sent_at[uid])
            answers[uid] = output
            if waiting:
                send()
        return Served(time.perf_counter() - min(sent_at.values()), latencies, answers)

    def _answered(self, since: int) -> Iterator[dict[str, Any]]:
        """The outputs of the jobs that end, in order, after the first `since` posts. Progress is skipped."""
        posted = self._stand_in.posted
        for position in itertools.count(since):
            self._wait_for(lambda position=position: len(posted) > position)  # type: ignore[misc]
            body = json.loads(posted[position])
            if "error" in body:
                raise RuntimeError(f"a job failed: {body['error']}")
            if body.get("status") != "IN_PROGRESS":
                yield body["output"]

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self.process.wait_for(condition, TIMEOUT_S, POLL_S)


@contextmanager
def running(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Worker]:
    """`python ARGUMENTS`, once it has asked for its first job. Of a worker's variables, only those given are set."""
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
