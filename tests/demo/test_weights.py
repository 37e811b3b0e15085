"""What the bundled weights generate: the README's promises, on prompts that are not in the training set."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from demo.dataset import Figure, Scene, render
from demo.judge import detect, judge, unseen_scenes
from sd_core.engine.engine import Engine
from sd_core.pipeline.images import to_pixels
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from tests.support.pictures import psnr

pytestmark = pytest.mark.slow

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"
# The aims are 95, 85 and 80; one image less for two of them, because other processors round differently.
MIN_PERCENT = {"one shape": 92.5, "held-out pair": 85, "two shapes": 77.5}

JUDGED = 40


def engine_of(dtype: str) -> Engine:
    return Engine([StableDiffusion.load(WEIGHTS / "demo.safetensors", WEIGHTS, "cpu", dtype)], max_batch=8)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = engine_of("fp32")
    yield engine
    engine.close()


def request_of(prompt: str, seed: int = 0, **changes: object) -> Request:
    return replace(Request(prompt, seed=seed, width=128, height=128), **changes)


def test_the_files_stay_small_and_in_half_precision() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir() if file.is_file()) <= 24_000_000
    with safe_open(WEIGHTS / "demo.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118


@pytest.fixture(scope="module")
def percents(engine: Engine) -> dict[str, float]:
    return {group: score.percent for group, score in judge(engine, JUDGED).items()}


@pytest.mark.parametrize("group", MIN_PERCENT)
def test_images_follow_unseen_prompts(percents: dict[str, float], group: str) -> None:
    assert percents[group] >= MIN_PERCENT[group]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_generates_nearly_the_same_images(engine: Engine, dtype: str) -> None:
    """30 dB or more from float32 on average; `python -m demo.judge --dtype` compares the scores."""
    half, psnrs = engine_of(dtype), []
    for index, scenes in enumerate(unseen_scenes(4).values()):
        for scene in scenes:
            request = request_of(scene.prompt, seed=index)
            exact, rough = (side.submit(request).result().images[0] for side in (engine, half))
            psnrs.append(psnr(rough, exact))
    half.close()
    assert np.mean(psnrs) >= 30


def test_an_image_in_tiles_is_nearly_the_whole(engine: Engine) -> None:
    (model,) = engine.models.values()
    vae = model.networks.vae
    figures = (Figure("blue", "star", 0.3, 0.5, 0.19), Figure("red", "ring", 0.72, 0.5, 0.19))
    image = render(Scene("", "yellow", figures), 640)
    with torch.inference_mode():
        pixels, noise = to_pixels(image, model.device), torch.zeros(1, 4, 80, 80)
        whole, parts = (vae.sample(*moments, noise) for moments in (vae.moments(pixels), vae.moments_tiled(pixels)))
        decoded, tiled = vae.decode(whole), vae.decode_tiled(parts)
    assert 10 * np.log10(4 / float((tiled - decoded).square().mean())) > 25


def test_image_to_image_keeps_the_layout_at_low_strength_only(engine: Engine) -> None:
    figures = (Figure("black", "star", 0.25, 0.5, 0.19), Figure("yellow", "ring", 0.75, 0.5, 0.19))
    image = render(Scene("", "green", figures))
    prompt = "a white circle above a purple heart on a red background"

    def redrawn(strength: float, seed: int) -> list[Figure]:
        request = request_of(prompt, seed, image=image, strength=strength)
        return sorted(detect(engine.submit(request).result().images[0]).figures, key=lambda figure: figure.x)

    kept = left = 0
    for seed in range(5):
        same, other = redrawn(0.4, seed), redrawn(0.95, seed)
        kept += len(same) == 2 and same[1].x - same[0].x > 0.4 and abs(same[1].y - same[0].y) < 0.15
        left += len(other) == 2 and abs(other[1].y - other[0].y) > 0.3
    assert kept >= 4
    assert left >= 4


def test_a_negative_prompt_moves_the_image_away_from_what_it_names(engine: Engine) -> None:
    named = "a large white circle on a blue background"
    target = render(Scene("", "blue", (Figure("white", "circle", radius=0.39),))).astype(float)

    def distance(negative: str) -> float:
        results = [
            engine.submit(request_of("", seed, negative_prompt=negative, scale=4.0)).result() for seed in range(8)
        ]
        return float(np.mean([np.abs(result.images[0] - target).mean() for result in results]))

    assert distance(named) > distance("") + 5


def test_any_other_text_gives_an_image(engine: Engine) -> None:
    for prompt in ("", "an astronaut riding a horse", "日本の猫 🐈", "x" * 3_000):
        image = engine.submit(request_of(prompt, steps=4)).result().images[0]
        assert image.shape == (128, 128, 3)


def test_sizes_other_than_the_native_one_are_generated(engine: Engine) -> None:
    image = (
        engine.submit(request_of("a red circle on a white background", width=136, height=72, steps=4))
        .result()
        .images[0]
    )
    assert image.shape == (72, 136, 3)
