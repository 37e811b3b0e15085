"""Process start to ready, and the memory held then. `python -m bench.start [--dtype fp16]`

Ours is the whole worker, `python handler.py` as the platform starts it: ready is when the SDK first asks a stand-in of
the platform for a job. The other side imports diffusers and calls `from_pretrained` on the same weights in diffusers'
own layout, from the same disk: ready is when that returns. Both find the files in the page cache. `torch` is a process
that imports torch alone: what is held beyond it is the model.
"""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

from bench.common import Options, RandomModel, parse, random_model, ratio, report, summary
from bench.reference import reference_pipeline
from sd_core.weights.check import expected_shapes

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 300

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


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=5)
    model = random_model(options)
    folder = _diffusers_folder(model)
    torch_name = str(options.torch_dtype).removeprefix("torch.")
    sides: dict[str, Callable[[], tuple[float, int]]] = {
        "ours": lambda: _start_worker(model.directory, options),
        "diffusers": lambda: _start_script(DIFFUSERS, str(folder), torch_name, str(options.device)),
        "torch": lambda: _start_script(TORCH),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    resident: dict[str, list[float]] = {name: [] for name in sides}
    warm_up = 0 if options.tiny else 1  # brings the files into the page cache
    for round_number in range(-warm_up, options.rounds):
        for name, start in sides.items():
            spent, held = start()
            if round_number >= 0:
                seconds[name].append(spent)
                resident[name].append(held / 1e6)
    weights = _weight_bytes(model, options) / 1e6
    beyond_torch = summary(resident["ours"])["median"] - summary(resident["torch"])["median"]
    return report(
        "start",
        options,
        ready_s={name: summary(values) for name, values in seconds.items()},
        ratio=ratio(seconds["ours"], seconds["diffusers"]),
        resident_mb={name: summary(values, digits=1) for name, values in resident.items()},
        weights_mb=round(weights, 1),
        resident_beyond_torch_over_weights=round(beyond_torch / weights, 3),
    )


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


def _start_script(script: str, *arguments: str) -> tuple[float, int]:
    """Seconds until the script has run, and the bytes that its process then holds resident."""
    started = time.perf_counter()
    with _process([sys.executable, "-c", script + SAY_READY, *arguments], {"HF_HUB_OFFLINE": "1"}) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the process ended before it was ready")
        return time.perf_counter() - started, psutil.Process(process.pid).memory_info().rss


def _start_worker(weights: Path, options: Options) -> tuple[float, int]:
    """Seconds until the worker asks for its first job, and the bytes that its process then holds resident."""
    with _platform() as (port, asked):
        environment = {
            "RUNPOD_WEBHOOK_GET_JOB": f"http://127.0.0.1:{port}/job-take/$ID",
            "RUNPOD_POD_ID": "bench",
            "SD_WEIGHTS": str(weights),
            "SD_OUTPUTS": str(weights / "outputs"),
            "SD_DEVICE": str(options.device),
            "SD_DTYPE": options.dtype,
            "LOG_LEVEL": "ERROR",
        }
        started = time.perf_counter()
        with _process([sys.executable, "-u", str(ROOT / "handler.py")], environment) as process:
            while not asked.wait(0.001):
                if process.poll() is not None:
                    raise RuntimeError(f"the worker ended with {process.returncode} before it asked for a job")
                if time.perf_counter() - started > PATIENCE_S:
                    raise RuntimeError(f"the worker asked for no job in {PATIENCE_S} s")
            return time.perf_counter() - started, psutil.Process(process.pid).memory_info().rss


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


@contextmanager
def _platform() -> Iterator[tuple[int, threading.Event]]:
    """A stand-in of the platform that has no jobs: its port, and the event of its first being asked for one."""
    asked = threading.Event()

    class NoJobs(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002 - the base class's signature
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), NoJobs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
