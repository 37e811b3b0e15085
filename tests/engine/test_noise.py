"""Noise of every kind in the engine: it belongs to its image, whatever else runs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sd_core.engine.engine import Engine
from sd_core.pipeline.sample import Run
from tests.support.engine import SMALL_REQUEST
from tests.support.pictures import levels_apart

NOISES = [
    replace(SMALL_REQUEST, sampler="dpmpp_sde", schedule="karras", steps=4),
    replace(SMALL_REQUEST, sampler="dpmpp_3m_sde", schedule="exponential", steps=6),
    replace(SMALL_REQUEST, rng="nv", steps=6),
    replace(SMALL_REQUEST, rng="nv", sampler="dpmpp_2m_sde", eta_noise_seed_delta=31337),
    replace(SMALL_REQUEST, variation_seed=8, variation_strength=0.4),
]


def test_noise_does_not_depend_on_the_neighbours(engine: Engine) -> None:
    alone = [engine.submit(request).result().images[0] for request in NOISES]
    futures = [engine.submit(request) for request in NOISES]
    for future, expected in zip(futures, alone, strict=True):
        assert levels_apart(future.result().images[0], expected) <= 1


def test_every_way_to_change_the_noise_changes_the_image(engine: Engine) -> None:
    ways = [{}, {"rng": "nv"}, {"eta_noise_seed_delta": 1}, {"variation_seed": 8, "variation_strength": 0.4}]
    ways += [{"eta": 0.3}, {"s_noise": 1.2}]
    images = [engine.submit(replace(SMALL_REQUEST, **way)).result().images[0] for way in ways]
    apart = [levels_apart(one, other) for one, other in itertools.combinations(images, 2)]
    assert min(apart) > 1, apart


def test_variations_of_one_seed_count_the_variation_seed_up(engine: Engine) -> None:
    request = replace(SMALL_REQUEST, variation_seed=8, variation_strength=0.4)
    together = engine.submit(replace(request, num_images=2)).result()
    assert together.seeds == [3, 3]
    for image, variation_seed in zip(together.images, (8, 9), strict=True):
        alone = engine.submit(replace(request, variation_seed=variation_seed)).result().images[0]
        assert levels_apart(image, alone) <= 1


def test_image_to_image_follows_the_path_of_the_whole_schedule(engine: Engine) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    request = replace(SMALL_REQUEST, sampler="dpmpp_2m_sde", schedule="karras", steps=5, image=image, strength=0.6)
    spans = [request.steps, 5 * request.steps]
    noises = [Run.of(replace(request, steps=steps)).span(engine.models["tiny"]) for steps in spans]
    assert noises[0] == pytest.approx((0.0291675, 14.614641), rel=1e-4) and noises[0] == noises[1]
    assert engine.submit(request).result().images
