"""The time from process start to ready, its phases, and the memory at that time. `python -m bench.start [--dtype fp16]`

`ours` is the whole worker, `python handler.py` as the platform starts it, until the SDK first asks a stand-in for the
platform for a job. `diffusers` imports diffusers and calls `from_pretrained` on the same weights in diffusers' own
layout, from the same disk, until that returns. Both read the files from the page cache. `torch` only imports torch; the
memory beyond it is the model. `demo` is our worker with the bundled demo model.

`phases_ms` is the `start_ms` that the worker logs in its line "ready".
"""

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.common import Options, RandomModel, parse, random_model, ratio, report, summary, worker_environment
from bench.loop import running
from sd_core.formats.check import expected_shapes
from tests.support.processes import ROOT
from tests.support.reference import reference_pipeline
from worker.settings import BUNDLED_WEIGHTS

TORCH = "import torch"
DIFFUSERS = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(
    sys.argv[1], dtype=getattr(torch, sys.argv[2]), safety_checker=None, local_files_only=True
).to(sys.argv[3])
"""
SAY_READY = """
import sys
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Started:
    """One start: seconds until ready, resident bytes at that time, and a worker's milliseconds per phase."""

    seconds: float
    resident: int
    phases_ms: dict[str, float] | None = None


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=5)
    model = random_model(options)
    folder = _diffusers_folder(model)
    torch_name = str(options.torch_dtype).removeprefix("torch.")
    sides: dict[str, Callable[[], Started]] = {
        "ours": lambda: _start_worker(model.directory, options),
        "diffusers": lambda: _start_script(DIFFUSERS, str(folder), torch_name, str(options.device)),
        "torch": lambda: _start_script(TORCH),
        "demo": lambda: _start_worker(BUNDLED_WEIGHTS, options),
    }
    starts: dict[str, list[Started]] = {name: [] for name in sides}
    warm_up = 0 if options.tiny else 1  # brings the files into the page cache
    for round_number in range(-warm_up, options.rounds):
        for name, start in sides.items():
            started = start()
            if round_number >= 0:
                starts[name].append(started)
    seconds = {name: [started.seconds for started in of] for name, of in starts.items()}
    resident = {name: summary([started.resident / 1e6 for started in of], digits=1) for name, of in starts.items()}
    weights_mb = _weight_bytes(model, options) / 1e6
    beyond_torch = resident["ours"]["median"] - resident["torch"]["median"]
    return report(
        "start",
        options,
        ready_s={name: summary(values) for name, values in seconds.items()},
        ratio=ratio(seconds["ours"], seconds["diffusers"]),
        phases_ms={
            name: _medians([started.phases_ms for started in starts[name] if started.phases_ms])
            for name in ("ours", "demo")
        },
        resident_mb=resident,
        weights_mb=round(weights_mb, 1),
        resident_beyond_torch_over_weights=round(beyond_torch / weights_mb, 3),
    )


def _medians(starts: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each phase."""
    return {phase: round(statistics.median(start[phase] for start in starts), 1) for phase in starts[0]}


def _weight_bytes(model: RandomModel, options: Options) -> int:
    shapes = expected_shapes(model.architecture).values()
    return sum(math.prod(shape) for shape in shapes) * options.torch_dtype.itemsize


def _diffusers_folder(model: RandomModel) -> Path:
    """The same weights, as diffusers saves them in float16."""
    folder = model.directory / "diffusers"
    if not folder.exists():
        half_written = model.directory / "diffusers.part"
        reference_pipeline(model.weights(), model.architecture, model.directory).save_pretrained(half_written)
        half_written.rename(folder)
    return folder


def _start_script(script: str, *arguments: str) -> Started:
    """Start a process and wait until its script has run."""
    started = time.perf_counter()
    with _process([sys.executable, "-c", script + SAY_READY, *arguments], {"HF_HUB_OFFLINE": "1"}) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the process ended before it was ready")
        return Started(time.perf_counter() - started, psutil.Process(process.pid).memory_info().rss)


def _start_worker(weights: Path, options: Options) -> Started:
    """Start a worker and wait until it asks for its first job."""
    with running(["handler.py"], worker_environment(weights, options)) as worker:
        resident = worker.process.resident_bytes
        ready = [line for line in worker.process.lines() if line["message"] == "ready"]
        return Started(worker.ready_s, resident, ready[0]["start_ms"])


@contextmanager
def _process(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
