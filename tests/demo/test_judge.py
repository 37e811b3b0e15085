"""The judge itself: it accepts images that show their scene, and no others."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from demo.dataset import COLOURS, HELD_OUT_PAIRS, SHAPES, Figure, Scene, render, training_scene
from demo.judge import detect, shows, unseen_scenes


def test_a_rendered_scene_is_right() -> None:
    rng = random.Random(3)
    for scene in [training_scene(rng) for _ in range(60)]:
        assert shows(detect(render(scene)), scene), scene


def test_a_scene_with_slight_blur_and_noise_is_right() -> None:
    rng, noise = random.Random(4), np.random.default_rng(4)
    for scene in [training_scene(rng) for _ in range(20)]:
        blurred = np.asarray(Image.fromarray(render(scene)).filter(ImageFilter.GaussianBlur(1.0)), dtype=float)
        rough = np.clip(blurred + noise.normal(0, 6, blurred.shape), 0, 255).astype(np.uint8)
        assert shows(detect(rough), scene), scene


def test_any_other_shape_colour_or_background_is_wrong() -> None:
    scene = Scene("", "white", (Figure("red", "circle"),))
    for shape in SHAPES:
        for colour in COLOURS:
            for background in COLOURS:
                if colour != background:
                    other = Scene("", background, (Figure(colour, shape),))
                    same = (shape, colour, background) == ("circle", "red", "white")
                    assert shows(detect(render(other)), scene) == same, other


def test_swapped_missing_and_surplus_figures_are_wrong() -> None:
    left, right = Figure("red", "star", 0.25, 0.5, 0.18), Figure("blue", "heart", 0.75, 0.5, 0.18)
    scene = Scene("", "white", (left, right))
    assert shows(detect(render(scene)), scene)
    swapped = (replace(left, x=right.x), replace(right, x=left.x))
    colours_swapped = (replace(left, colour=right.colour), replace(right, colour=left.colour))
    above = (replace(left, x=0.5, y=0.25), replace(right, x=0.5, y=0.75))
    third = (left, right, Figure("green", "ring", 0.5, 0.85, 0.12))
    for figures in (swapped, colours_swapped, above, (left,), third):
        assert not shows(detect(render(Scene("", "white", figures))), scene), figures


@pytest.mark.parametrize("kind", ["flat", "noise", "stripes"])
def test_images_without_figures_are_wrong(kind: str) -> None:
    image = {
        "flat": np.full((128, 128, 3), 245, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8),
        "stripes": np.where(np.arange(128)[None, :, None] % 16 < 8, 245, 25)
        .repeat(128, 0)
        .repeat(3, 2)
        .astype(np.uint8),
    }[kind]
    assert not shows(detect(image), Scene("", "white", (Figure("red", "circle"),)))


def test_the_groups_contain_the_prompts_that_they_are_named_for() -> None:
    groups = unseen_scenes(30)
    assert [len(scenes) for scenes in groups.values()] == [30, 30, 30]
    assert {scene.figures[0].pair for scene in groups["held-out pair"]} == HELD_OUT_PAIRS
    rng = random.Random(0)
    trained = {training_scene(rng).prompt for _ in range(5_000)}
    assert not trained & {scene.prompt for scenes in groups.values() for scene in scenes}
