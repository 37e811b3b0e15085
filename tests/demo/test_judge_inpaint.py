"""The judge of repainted images, and what the bundled weights repaint."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from demo.dataset import render
from demo.judge import detect, shows
from demo.judge_inpaint import GROUPS, judge
from sd_core.engine.engine import Engine
from sd_core.pipeline.inpaint import canvas_of
from sd_core.pipeline.model import StableDiffusion

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"
JUDGED = 60
# What is aimed at is 85; one image less, because other processors round otherwise.
LEAST_PERCENT = 83


@pytest.mark.parametrize("group", GROUPS)
def test_the_true_image_is_right_and_the_sent_one_is_wrong(group: str) -> None:
    rng = random.Random(7)
    for case in [GROUPS[group](rng, index) for index in range(20)]:
        true = np.where(case.kept[..., None], case.whole, render(case.scene))
        assert shows(detect(render(case.scene)), case.scene), case.scene
        assert case.is_right(true), case.scene
        assert not case.is_right(canvas_of(case.request).put_back(np.full_like(true, 127)))
        assert not case.is_right(true[:, :-1])


@pytest.mark.parametrize("group", GROUPS)
def test_one_changed_kept_pixel_is_seen(group: str) -> None:
    case = GROUPS[group](random.Random(7), 0)
    true = np.where(case.kept[..., None], case.whole, render(case.scene))
    y, x = np.argwhere(case.kept)[0]
    true[y, x, 0] ^= 1
    assert not case.keeps(true) and not case.is_right(true)


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_kept_is_what_the_request_keeps(group: str) -> None:
    rng = random.Random(7)
    for case in [GROUPS[group](rng, index) for index in range(8)]:
        assert np.array_equal(case.kept, canvas_of(case.request).opaque == 0)
        assert 0 < case.kept.mean() < 1


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine([StableDiffusion.load(WEIGHTS / "demo.safetensors", WEIGHTS, "cpu", "fp32")], max_batch=8)
    yield engine
    engine.close()


@pytest.mark.slow
def test_masked_parts_and_borders_become_what_the_prompt_says(engine: Engine) -> None:
    scores = judge(engine, JUDGED)
    assert {group: score.percent for group, score in scores.items() if score.percent < LEAST_PERCENT} == {}
