"""The demo's ControlNet: its training's scenes, its judge, its file, and where it puts shapes."""

import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from demo.assemble import CHECKPOINT, WEIGHTS
from demo.dataset import Figure, Scene, coverage, render, training_scene
from demo.judge_control import controlled_request, controlled_scenes, in_place, judge
from demo.train_controlnet import CONTROLNET, edges, placed
from sd_core.catalogue import Catalogue, folders_in
from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion
from sd_core.volume import Library

JUDGED = 60
# What is aimed at is 90; one image less, because other processors round differently.
MIN_PERCENT, MAX_WITHOUT = 88, 10


def test_shapes_are_placed_within_the_image_and_apart() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = placed(rng, training_scene(rng))
        covered = [coverage(figure) > 0 for figure in scene.figures]
        assert sum(mask.astype(int) for mask in covered).max() == 1
        assert not any(mask[[0, -1]].any() or mask[:, [0, -1]].any() for mask in covered)
        assert in_place(render(scene), scene), scene


def test_a_shape_elsewhere_or_of_another_size_is_wrong() -> None:
    figure = Figure("red", "star", 0.4, 0.6, 0.2)
    scene = Scene("", "white", (figure,))
    for other in (replace(figure, x=0.5), replace(figure, y=0.5), replace(figure, radius=0.28)):
        assert not in_place(render(Scene("", "white", (other,))), scene), other
    assert not in_place(render(Scene("", "white", (replace(figure, colour="blue"),))), scene)


def test_an_edge_map_has_lines_where_the_colour_changes() -> None:
    lines = edges(render(Scene("", "white", (Figure("red", "square", radius=0.3),))))
    assert lines.shape == (128, 128, 3) and set(np.unique(lines)) == {0, 255}
    ys, xs = np.nonzero(lines[:, :, 0])
    side = round(2 * 0.85 * 0.3 * 128)
    assert abs(np.ptp(ys) - side) <= 2 and abs(np.ptp(xs) - side) <= 2


def test_the_file_is_small_and_in_its_authors_layout() -> None:
    assert CONTROLNET.stat().st_size <= 10_000_000
    with safe_open(CONTROLNET, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert {"control_model.zero_convs.0.0.weight", "control_model.input_hint_block.14.weight"} < set(tensors)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model = StableDiffusion.load(CHECKPOINT, WEIGHTS, "cpu", "fp32")
    engine = Engine([model], max_batch=8, max_jobs=2 * JUDGED, library=Library(Catalogue(folders_in(WEIGHTS))))
    yield engine
    engine.close()


def test_a_shape_is_put_where_the_edge_map_says(engine: Engine) -> None:
    for index, (x, y) in enumerate([(0.3, 0.3), (0.7, 0.6)]):
        scene = Scene("a small blue circle on a white background", "white", (Figure("blue", "circle", x, y, 0.18),))
        assert in_place(engine.submit(controlled_request(scene, index)).result().images[0], scene)


@pytest.mark.slow
def test_shapes_are_put_where_edge_maps_say_and_nowhere_without(engine: Engine) -> None:
    percents = {group: score.percent for group, score in judge(engine, JUDGED).items()}
    assert percents.keys() >= controlled_scenes(1).keys()
    for group in controlled_scenes(1):
        assert percents[group] >= MIN_PERCENT
        assert percents[f"{group}, without"] <= MAX_WITHOUT
