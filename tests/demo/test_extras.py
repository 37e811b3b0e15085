"""What hires, tiling, DeepCache and the other extras make of the demo model's pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.dataset import Scene
from demo.judge import detect, shows, unseen_scenes
from sd_core.engine.engine import Engine
from sd_core.nested import Hires
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request

pytestmark = pytest.mark.slow

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"
SIDE = 128


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine([StableDiffusion.load(WEIGHTS / "demo.safetensors", WEIGHTS, "cpu", "fp32")], max_batch=8)
    yield engine
    engine.close()


SCENES = [scene for scenes in unseen_scenes(2).values() for scene in scenes]


def generate(engine: Engine, scenes: list[Scene], **changes: object) -> list[np.ndarray]:
    futures = [
        engine.submit(replace(Request(scene.prompt, seed=index, width=SIDE, height=SIDE), **changes))
        for index, scene in enumerate(scenes)
    ]
    return [future.result().images[0] for future in futures]


def right(images: list[np.ndarray]) -> int:
    return sum(shows(detect(image), scene) for image, scene in zip(images, SCENES, strict=True))


@pytest.fixture(scope="module")
def plain(engine: Engine) -> list[np.ndarray]:
    return generate(engine, SCENES)


def edge_energy(image: np.ndarray) -> float:
    """Mean squared difference between neighbouring pixels: that of the same edges grows as they get sharper."""
    gray = image.astype(float).mean(axis=2)
    return float(np.square(np.diff(gray, axis=0)).mean() + np.square(np.diff(gray, axis=1)).mean())


@pytest.mark.parametrize("upscaler", ["lanczos", "latent"])
def test_a_second_pass_is_sharper_than_a_resize(engine: Engine, plain: list[np.ndarray], upscaler: str) -> None:
    """Of the same picture: it is not the energy of noise or of other shapes."""
    images = generate(engine, SCENES, hires=Hires(upscaler=upscaler, strength=0.3, steps=8))
    ratios, likeness = [], []
    for image, first in zip(images, plain, strict=True):
        larger = np.array(Image.fromarray(first).resize((2 * SIDE, 2 * SIDE), Image.Resampling.LANCZOS))
        ratios.append(edge_energy(image) / edge_energy(larger))
        smaller = np.array(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX))
        likeness.append(np.corrcoef(smaller.ravel(), first.ravel())[0, 1])
    assert min(ratios) > 1.5 and np.median(ratios) > 2
    assert np.median(likeness) > 0.9


def test_a_tile_has_no_seam(engine: Engine) -> None:
    """The step over the border is as small as between neighbours; without tiling it is the largest there is."""

    def seam(image: np.ndarray) -> float:
        gray = image.astype(float).mean(axis=2)
        over = np.abs(gray[:, 0] - gray[:, -1]).mean() + np.abs(gray[0] - gray[-1]).mean()
        inside = np.abs(np.diff(gray, axis=1)).mean(axis=0).max() + np.abs(np.diff(gray, axis=0)).mean(axis=1).max()
        return float(over / inside)

    images = generate(engine, SCENES, tiling=True)
    assert max(seam(image) for image in images) < 1.0


@pytest.mark.parametrize(
    "changes",
    [{"deepcache": 3}, {"tome_ratio": 0.3}, {"guidance_rescale": 0.5}, {"guidance_end": 0.6}],
    ids=lambda changes: next(iter(changes)),
)
def test_pictures_still_show_what_was_asked(
    engine: Engine, plain: list[np.ndarray], changes: dict[str, object]
) -> None:
    images = generate(engine, SCENES, **changes)
    assert right(images) >= right(plain) - 1
    assert any(not np.array_equal(image, first) for image, first in zip(images, plain, strict=True))
