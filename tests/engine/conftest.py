from collections.abc import Iterator

import pytest

from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion


@pytest.fixture
def engine(tiny_model: StableDiffusion) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=4)
    yield engine
    engine.close()
