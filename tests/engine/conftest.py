from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from tests.support.volume import SECONDS, Alone, Start, engine_of, write_volume


@pytest.fixture
def engine(tiny_model: StableDiffusion) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=4)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory, smallest_checkpoint: Path) -> Path:
    return write_volume(tmp_path_factory.mktemp("volume") / "weights", smallest_checkpoint)


@pytest.fixture
def start(volume: Path) -> Iterator[Start]:
    """Start an engine on the volume, or on another one."""
    engines = []

    def begin(folder: Path = volume, budget: float | None = None) -> Engine:
        engines.append(engine_of(folder, budget))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def alone(volume: Path) -> Alone:
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
