import random
import re

import numpy as np
import pytest

from demo.dataset import (
    COLOURS,
    HELD_OUT_PAIRS,
    RELATIONS,
    SHAPES,
    Figure,
    coverage,
    outline,
    render,
    training_scene,
    unseen_pair,
    unseen_singles,
)

COLOUR, SHAPE = "|".join(COLOURS), "|".join(SHAPES)
SINGLE = re.compile(rf"a ((?:small|large) )?({COLOUR}) ({SHAPE}) on a ({COLOUR}) background")
PAIR = re.compile(rf"a ({COLOUR}) ({SHAPE}) ({'|'.join(RELATIONS)}) a ({COLOUR}) ({SHAPE}) on a ({COLOUR}) background")


def test_training_never_shows_what_is_held_out() -> None:
    rng = random.Random(0)
    singles = pairs = 0
    for _ in range(5_000):
        scene = training_scene(rng)
        assert not HELD_OUT_PAIRS & {figure.pair for figure in scene.figures}
        if single := SINGLE.fullmatch(scene.prompt):
            singles += 1
            size, colour, shape, background = single.groups(default="")
            assert (size.strip(), colour, shape, background) not in unseen_singles()
        else:
            pairs += 1
            pair = PAIR.fullmatch(scene.prompt)
            assert pair is not None, scene.prompt
            relation = pair.group(3)
            assert not unseen_pair(scene.figures[0], relation, scene.figures[1])
    assert singles > 1_000
    assert pairs > 1_000


def test_a_scene_is_rendered_as_its_prompt_says() -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene = training_scene(rng)
        image = render(scene)
        assert image.shape == (128, 128, 3)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (border == COLOURS[scene.background]).all()
        if pair := PAIR.fullmatch(scene.prompt):
            first, second = scene.figures
            apart = {
                "left of": second.x - first.x,
                "right of": first.x - second.x,
                "above": second.y - first.y,
                "below": first.y - second.y,
            }[pair.group(3)]
            assert apart > 0.4
            for figure in scene.figures:
                along = figure.x if pair.group(3) in ("left of", "right of") else figure.y
                assert (along + figure.radius < 0.5) or (along - figure.radius > 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fit_the_unit_square_and_are_symmetric(shape: str) -> None:
    points = np.array(outline(shape))
    assert np.abs(points).max() <= 1.06
    covered = coverage(Figure("red", shape, radius=0.4))
    assert np.abs(covered - covered[:, ::-1]).mean() < 0.02  # the same from left to right


def test_a_rings_hole_has_half_its_diameter() -> None:
    hole = coverage(Figure("red", "circle", radius=0.4)) - coverage(Figure("red", "ring", radius=0.4))
    whole = coverage(Figure("red", "circle", radius=0.4))
    assert hole.sum() / whole.sum() == pytest.approx(0.25, abs=0.02)


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'moon'"):
        outline("moon")
