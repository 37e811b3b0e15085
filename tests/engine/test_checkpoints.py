"""Checkpoints that are loaded when a job first names them, beside the jobs that run."""

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sd_core.catalogue import Catalogue, Kind
from sd_core.engine.checkpoints import Checkpoints
from sd_core.engine.engine import Engine
from sd_core.formats.detect import NATIVE_SIZE_KEY
from sd_core.formats.keys import UNET_PREFIX
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from tests.support.engine import SMALL_REQUEST
from tests.support.pictures import levels_apart
from tests.support.random_weights import SMALLEST, write_checkpoint

SECONDS = 60
NAMES = ("tiny", "second", "third")
REQUEST = replace(SMALL_REQUEST, steps=2)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory, smallest_checkpoint: Path) -> Path:
    """Three checkpoints: the third has the first one's text encoder and VAE, and only the first has a tokenizer."""
    folder = Path(shutil.copytree(smallest_checkpoint.parent, tmp_path_factory.mktemp("volume") / "weights"))
    write_checkpoint(folder / "second.safetensors", SMALLEST, torch.float32, seed=1)
    tensors = load_file(folder / "tiny.safetensors")
    other = {name: -tensor if name.startswith(UNET_PREFIX) else tensor for name, tensor in tensors.items()}
    save_file(other, folder / "third.safetensors", {NATIVE_SIZE_KEY: "128"})
    return folder


Start = Callable[..., Engine]


@pytest.fixture
def start(volume: Path) -> Iterator[Start]:
    """Start an engine that has loaded the first checkpoint; `budget` is how many models stay loaded."""
    engines = []

    def begin(folder: Path = volume, budget: float | None = None) -> Engine:
        model = StableDiffusion.load(folder / "tiny.safetensors", folder, "cpu", "fp32")
        checkpoints = Checkpoints([model], Catalogue({Kind.CHECKPOINT: (folder,)}, max_depth=1))
        size = None if budget is None else int(budget * checkpoints["tiny"].nbytes)
        engines.append(Engine([model], max_batch=4, checkpoints=checkpoints, models_bytes=size))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def alone(volume: Path) -> Callable[[Request], np.ndarray]:
    """The image of a request by an engine that holds its model only."""
    images: dict[tuple[str, int], np.ndarray] = {}

    def image(request: Request) -> np.ndarray:
        name = request.model or "tiny"
        if (name, request.seed) not in images:
            engine = Engine([StableDiffusion.load(volume / f"{name}.safetensors", volume, "cpu", "fp32")], 4)
            images[name, request.seed] = engine.submit(replace(request, model=None)).result(SECONDS).images[0]
            engine.close()
        return images[name, request.seed]

    return image


def of(name: str, seed: int = 0) -> Request:
    return replace(REQUEST, model=name, seed=seed)


def test_a_checkpoint_is_loaded_when_a_job_first_names_it(start: Start, alone: Callable[[Request], np.ndarray]) -> None:
    engine = start()
    assert list(engine.checkpoints) == ["tiny", "second", "third"]
    assert list(engine.models) == ["tiny"]
    futures = [engine.submit(of(name)) for name in ("second", "tiny", "third")]
    for name, future in zip(("second", "tiny", "third"), futures, strict=True):
        assert levels_apart(future.result(SECONDS).images[0], alone(of(name))) <= 1
    assert sorted(engine.models) == ["second", "third", "tiny"]


def test_the_head_of_a_file_says_its_size_before_it_is_loaded(start: Start) -> None:
    engine = start()
    assert {name: about.native_size for name, about in engine.checkpoints.items()} == {
        "tiny": 64,
        "second": 64,
        "third": 128,
    }
    assert engine.checkpoints["second"].nbytes == engine.checkpoints["tiny"].nbytes
    assert list(engine.models) == ["tiny"]


def test_networks_with_equal_weights_are_held_once(start: Start) -> None:
    engine = start()
    for name in ("third", "second"):
        engine.submit(of(name)).result(SECONDS)
    tiny, second, third = (engine.models[name] for name in NAMES)
    assert third.networks.vae is tiny.networks.vae and third.vae_key == tiny.vae_key
    assert third.networks.text_encoder is tiny.networks.text_encoder and third.text_key == tiny.text_key
    assert third.unet_key != tiny.unet_key and third.networks.unet is not tiny.networks.unet
    assert not {*vars(second.keys).values()} & {*vars(tiny.keys).values()}


def test_the_least_recently_used_model_is_dropped(start: Start, alone: Callable[[Request], np.ndarray]) -> None:
    engine = start(budget=2)
    dropped = weakref.ref(engine.models["tiny"].networks.unet)
    engine.submit(of("second")).result(SECONDS)
    engine.submit(of("tiny")).result(SECONDS)
    write = engine.submit(of("third")).result(SECONDS)
    assert sorted(engine.models) == ["third", "tiny"]
    assert levels_apart(write.images[0], alone(of("third"))) <= 1
    engine.submit(of("second")).result(SECONDS)
    assert sorted(engine.models) == ["second", "third"]
    gc.collect()
    assert dropped() is None
    assert levels_apart(engine.submit(of("tiny")).result(SECONDS).images[0], alone(of("tiny"))) <= 1
