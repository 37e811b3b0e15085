"""A worker with a stand-in for the engine, and a real one with tiny random weights."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from bench.loop import kill_family
from sd_core.errors import Busy
from sd_core.models.clip import CLIPConfig, CLIPTextEncoder
from sd_core.models.unet import UNet, UNetConfig
from sd_core.models.vae import VAE, VAEConfig
from sd_core.request import Observe, Progress, Request, Result
from tests.support.platform import PlatformStandIn, platform
from worker.api.job import Limits
from worker.identity import ModelIdentity
from worker.service import Service
from worker.settings import Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]
NATIVE_SIZE = 64


class StandInEngine:
    """Draws plain pictures of its own: a gradient whose level depends on the seed. Records what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.error: BaseException | None = None
        self.hangs = False
        self.hanging: Future[Result] = Future()
        self.asked = threading.Event()
        self.observers: list[Observe | None] = []
        self.full = False
        self.failure: Exception | None = None

    def submit(self, request: Request, observe: Observe | None = None) -> Future[Result]:
        if self.full:
            raise Busy("enough jobs wait already")
        self.requests.append(request)
        self.observers.append(observe)
        self.asked.set()
        if self.hangs:
            return self.hanging
        future: Future[Result] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(self.drawn(request))
        return future

    def drawn(self, request: Request) -> Result:
        images = [gradient(request.width, request.height, seed) for seed in request.seeds]
        timings = {"queue": 0.5, "encode": 1.25, "denoise": 20.0, "decode": 3.0}
        return Result(images, request.seeds, timings, ["drawn by a stand-in"])

    def tell(self, step: int) -> None:
        """Of a step that the last job has done, where somebody observes."""
        observe = self.observers[-1]
        if observe is not None:
            observe(Progress(step, 10, 10 * step, lambda: gradient(8, 8, step)))

    def close(self) -> None:
        pass


def gradient(width: int, height: int, seed: int) -> np.ndarray:
    row = (np.arange(width) * 3 + seed) % 256
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers in these tests are on this machine; a proxy of the machine's must not stand between."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine()


@pytest.fixture
def make_service(engine: StandInEngine, tmp_path: Path) -> Callable[..., Service]:
    """A service on the stand-in engine, with the environment variables given."""

    def make(**environ: str) -> Service:
        settings: Settings = read_settings({"SD_OUTPUTS": str(tmp_path / "outputs"), **environ})
        identity = ModelIdentity("tiny", "ab" * 32, tmp_path / "tiny.safetensors")
        limits = Limits(settings.max_pixels, {"tiny": NATIVE_SIZE})
        return Service(settings, engine, {"tiny": identity}, limits)

    return make


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


def tiny_networks() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    text = CLIPConfig(vocab_size=514, width=64, layers=1, heads=1, mlp_width=64)
    unet = UNetConfig(channels=(32, 32, 32, 32), num_res_blocks=1, attention_levels=(2,), context_dim=64)
    vae = VAEConfig(channels=(32, 32, 32, 32), num_res_blocks=1)
    return {
        "cond_stage_model.transformer.": CLIPTextEncoder(text),
        "model.diffusion_model.": UNet(unet),
        "first_stage_model.": VAE(vae),
    }


def write_weights(directory: Path, name: str = "tiny.safetensors") -> Path:
    """A v1.x checkpoint of random weights and a byte-level tokenizer beside it."""
    tensors = {
        prefix + key: tensor.contiguous()
        for prefix, network in tiny_networks().items()
        for key, tensor in network.state_dict().items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / name, {"sd_core.native_size": str(NATIVE_SIZE)})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return directory / name


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's file; its tokenizer lies beside it."""
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def process_environ(tiny_weights: Path, tmp_path: Path) -> dict[str, str]:
    """For a worker in a process of its own: this one's environment without any of the worker's variables."""
    worker_variables = ("SD_", "RUNPOD_", "LOG_LEVEL", "FLASK_DEBUG", "PORT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(worker_variables)}
    return {
        **kept,
        "SD_WEIGHTS": str(tiny_weights.parent),
        "SD_OUTPUTS": str(tmp_path / "outputs"),
        "SD_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
    }


PATIENCE_S = 300.0
"""How long a test waits for another process before it fails: long, because the machine may be busy."""


class WorkerProcess:
    """A worker in a process of its own, with what it prints in a file."""

    def __init__(self, arguments: list[str], environ: dict[str, str], printed: Path) -> None:
        self._printed = printed
        with printed.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def printed(self) -> str:
        return self._printed.read_text(encoding="utf-8")

    def lines(self) -> list[dict[str, Any]]:
        """The structured lines that it has printed so far."""
        return [json.loads(line) for line in self.printed.splitlines() if line.startswith('{"time"')]

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        """Until the condition holds; fails the test, with what was printed, where it does not come to that."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"exit code {self.process.poll()}, having printed:\n{self.printed}")
            time.sleep(0.05)

    def exit_code(self) -> int:
        """The code that it ends with; fails the test, with what was printed, where it does not end."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running, having printed:\n{self.printed}")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code()


@pytest.fixture
def start_worker(process_environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    started: list[WorkerProcess] = []

    def begin(*arguments: str, **environ: str) -> WorkerProcess:
        printed = tmp_path / f"printed-{len(started)}.txt"
        worker = WorkerProcess(list(arguments), {**process_environ, **environ}, printed)
        started.append(worker)
        return worker

    yield begin
    for worker in started:
        kill_family(worker.process)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def runpod() -> Iterator[PlatformStandIn]:
    with platform() as stand_in:
        yield stand_in
