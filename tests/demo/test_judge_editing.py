"""The judge of edited prompts, and what the bundled weights make of them."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from demo.dataset import render
from demo.judge_editing import MIN_OVERLAP, judge, overlap, red_to_blue
from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"
JUDGED = 60
MIN_PERCENT = 80


def test_the_edited_prompt_has_the_words_of_both() -> None:
    case = red_to_blue(random.Random(7), 3)
    first, edited, second = case.prompts
    assert edited == first.replace(" red ", " [red:blue:0.3] ")
    assert second == first.replace(" red ", " blue ")


def test_only_a_shape_in_the_same_place_overlaps() -> None:
    case = red_to_blue(random.Random(7), 0)
    (figure,) = case.first.figures
    blue = replace(case.first, figures=(replace(figure, colour="blue"),))
    moved = replace(case.first, figures=(replace(figure, colour="blue", x=figure.x - 0.3),))
    red = render(case.first)
    assert overlap(red, "red", render(blue), "blue") > 0.95
    assert overlap(red, "red", render(moved), "blue") < MIN_OVERLAP
    assert overlap(red, "red", render(case.first), "blue") == 0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model = StableDiffusion.load(WEIGHTS / "demo.safetensors", WEIGHTS, "cpu", "fp32")
    engine = Engine([model], max_batch=8, max_jobs=3 * JUDGED)
    yield engine
    engine.close()


@pytest.mark.slow
def test_an_edited_prompt_ends_as_its_second_word_in_the_layout_of_its_first(engine: Engine) -> None:
    scores = judge(engine, JUDGED)
    assert all(score.percent >= MIN_PERCENT for score in scores.values()), scores
