"""Many mixed jobs, some of them stopped, through the real SDK's loop: none is lost or answered twice, no memory leaks.

The ordinary run has few jobs, `SOAK_JOBS=500 pytest tests/soak` many.
"""

import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.pictures import data_uri, noise_picture
from tests.support.platform import PlatformStandIn
from tests.support.processes import WorkerProcess

pytestmark = pytest.mark.slow

JOBS = int(os.environ.get("SOAK_JOBS", "120"))
CONCURRENCY = 6
STOPPED_EVERY = 10
SAMPLERS = ("ddim", "ddpm", "euler", "euler_a_karras", "heun", "dpmpp_2m_karras")

# The time after which the test fails; long, because the machine may be busy.
TIMEOUT_S, TIMEOUT_PER_JOB_S = 300.0, 5.0

# Memory that the worker may gain in the second half of the jobs: allocators keep some of what the largest forwards
# needed, and which jobs share one differs.
GROWTH_MB = 24.0

Start = Callable[..., WorkerProcess]


def mixed_job(index: int, rng: random.Random) -> dict[str, Any]:
    """A job whose uid says what becomes of it: `stopped`, `refused` or `done`."""
    job: dict[str, Any] = {
        "prompt": f"prompt {rng.randrange(8)}",
        "seed": index,
        "steps": rng.randint(1, 6),
        "sampler": rng.choice(SAMPLERS),
        "scale": rng.choice((1.0, 7.5)),
        "width": rng.choice((72, 96, 128)),
        "num_images": rng.choice((1, 1, 1, 2)),
        "output_format": rng.choice(("png", "jpeg", "webp")),
    }
    if index % STOPPED_EVERY == STOPPED_EVERY - 1:  # takes minutes
        return {**job, "uid": f"stopped-{index}", "steps": 150, "sampler": "heun", "width": 512, "height": 512}
    if index % 9 == 4:
        return {**job, "uid": f"refused-{index}", "steps": 0}
    if index % 7 == 3:
        del job["width"]
        job |= {"image": data_uri(noise_picture(72, 64)), "strength": 0.5}
    return {**job, "uid": f"done-{index}"}


class Soak:
    """The jobs of one run, and what the platform received for them."""

    def __init__(self, runpod: PlatformStandIn, worker: WorkerProcess) -> None:
        rng = random.Random(0)
        self.jobs = [mixed_job(index, rng) for index in range(JOBS)]
        self._runpod, self._worker = runpod, worker
        self._to_stop: list[str] = []
        self._read = 0
        self.answers: list[dict[str, Any]] = []

    def run(self, jobs: list[dict[str, Any]]) -> None:
        """Run jobs until each is answered, or stopped while it runs."""
        expected = len(self.answers) + sum(not job["uid"].startswith("stopped") for job in jobs)
        cancelled = self.cancelled() + sum(job["uid"].startswith("stopped") for job in jobs)
        for job in jobs:
            self._runpod.add(job["uid"], job)
            if job["uid"].startswith("stopped"):
                self._to_stop.append(job["uid"])
        timeout = TIMEOUT_S + TIMEOUT_PER_JOB_S * len(jobs)
        self._worker.wait_for(lambda: self._look() >= expected and self.cancelled() >= cancelled, timeout)

    def cancelled(self) -> int:
        return sum(line.get("outcome") == "cancelled" for line in self._worker.lines())

    def _look(self) -> int:
        """Read what was posted, stop the jobs that have begun and are to be stopped, and count all answers."""
        for body in self._runpod.posted[self._read :]:
            self._read += 1
            posted = json.loads(body)
            if posted.get("status") != "IN_PROGRESS":
                self.answers.append(posted)
        begun = [line for line in self._worker.printed.splitlines() if "Started" in line]
        for uid in [uid for uid in self._to_stop if any(re.search(rf"{uid}\b", line) for line in begun)]:
            self._runpod.stop(uid)
            self._to_stop.remove(uid)
        return len(self.answers)


def test_every_job_is_answered_once_and_memory_does_not_grow(start_worker: Start, runpod: PlatformStandIn) -> None:
    settings = {"SD_MAX_CONCURRENCY": str(CONCURRENCY), "SD_MAX_BATCH": "4"}
    # oneDNN keeps the kernels of the last 1,024 shapes, which these jobs fill only slowly; 100 are filled soon.
    worker = start_worker("handler.py", **runpod.environ(), **settings, ONEDNN_PRIMITIVE_CACHE_CAPACITY="100")
    soak = Soak(runpod, worker)
    half = JOBS // 2
    soak.run(soak.jobs[:half])
    warm = worker.resident_bytes / 1e6
    soak.run(soak.jobs[half:])
    last = worker.resident_bytes / 1e6

    # Nothing more is posted: nothing for stopped jobs, and nothing twice.
    after = {"prompt": "x", "steps": 1, "uid": "done-after"}
    runpod.stop("unknown")
    soak.run([after])
    time.sleep(1)
    soak.run([])
    assert worker.end() == 0
    assert runpod.late == []

    answered = Counter(answer["output"]["uid"] for answer in soak.answers)
    assert answered == Counter(job["uid"] for job in [*soak.jobs, after] if not job["uid"].startswith("stopped"))
    for answer in soak.answers:
        kind = answer["output"]["uid"].partition("-")[0]
        assert answer.get("error", "").partition(":")[0] == {"done": "", "refused": "invalid_input"}[kind], answer
    by_uid = {answer["output"]["uid"]: answer["output"] for answer in soak.answers}
    for job in soak.jobs:
        if job["uid"].startswith("done"):
            output = by_uid[job["uid"]]
            assert len(output.get("images", ("one",))) == job["num_images"]
            assert output["parameters"]["seed"] == job["seed"]
    assert soak.cancelled() == sum(job["uid"].startswith("stopped") for job in soak.jobs)
    assert last - warm < GROWTH_MB, f"{warm:.1f} MB after {half} jobs, {last:.1f} MB after {JOBS}"
