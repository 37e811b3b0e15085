"""Fixtures that tests of several packages share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd_core.formats.check import expected_shapes
from sd_core.formats.detect import Architecture
from sd_core.models.clip import CLIPConfig
from sd_core.models.unet import UNetConfig
from sd_core.models.vae import VAEConfig
from sd_core.pipeline.model import StableDiffusion
from tests.support.platform import PlatformStandIn, platform
from tests.support.processes import WorkerProcess, environ_without_worker
from tests.support.processes import free_port as any_free_port
from tests.support.random_weights import SMALLEST, TINY, write_checkpoint
from tests.support.tokenizer_files import clip_merges, write_tokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` if there is none; on a GPU, compute float32 as exactly as a CPU does."""
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CLIP's real `vocab.json` and `merges.txt`."""
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder, clip_merges())
    return folder


def write_model(folder: Path, architecture: Architecture) -> Path:
    """A random checkpoint, with a tokenizer of bytes alone beside it."""
    write_tokenizer(folder, [])
    write_checkpoint(folder / "tiny.safetensors", architecture, torch.float32)
    return folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that generates quickly and has every kind of layer."""
    return write_model(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture(scope="session")
def smallest_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fastest checkpoint, for worker processes."""
    return write_model(tmp_path_factory.mktemp("smallest"), SMALLEST)


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> StableDiffusion:
    return StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cpu", "fp32")


@pytest.fixture(scope="session")
def tiny() -> Architecture:
    """An architecture of two levels and one residual block, the smallest that has every kind of layer."""
    return Architecture(
        text=CLIPConfig(vocab_size=100, width=32, layers=2, heads=1, mlp_width=64),
        unet=UNetConfig(channels=(32, 64), num_res_blocks=1, attention_levels=(0,), context_dim=32),
        vae=VAEConfig(channels=(32, 32, 64, 64), num_res_blocks=1),
    )


@pytest.fixture(scope="session")
def state(tiny: Architecture) -> dict[str, Tensor]:
    """Seeded float32 weights by checkpoint name; do not change them in place."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(tiny).items()}


@pytest.fixture
def process_environ(smallest_checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a worker process with the smallest checkpoint, on the CPU."""
    return {
        **environ_without_worker(),
        "SD_WEIGHTS": str(smallest_checkpoint.parent),
        "SD_OUTPUTS": str(tmp_path / "outputs"),
        "SD_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def start_worker(process_environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start `python ARGUMENTS` with added environment variables; processes still running after the test are killed."""
    started: list[WorkerProcess] = []

    def begin(*arguments: str, **environ: str) -> WorkerProcess:
        printed = tmp_path / f"printed-{len(started)}.txt"
        worker = WorkerProcess(arguments, {**process_environ, **environ}, printed)
        started.append(worker)
        return worker

    yield begin
    for worker in started:
        worker.kill()


@pytest.fixture
def free_port() -> int:
    return any_free_port()


@pytest.fixture
def runpod() -> Iterator[PlatformStandIn]:
    with platform() as stand_in:
        yield stand_in
