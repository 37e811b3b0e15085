"""Whole images beside diffusers' pipelines, on the same random weights and noise, float32 on the CPU.

diffusers is configured by `reference_schedulers` and given the noise that our seed draws.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from sd_core.engine.engine import Engine
from sd_core.formats.detect import Architecture
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from tests.support.pictures import psnr
from tests.support.random_weights import FULL, TINY, write_checkpoint
from tests.support.reference import reference_pipeline
from tests.support.reference_schedulers import DIFFUSERS, as_reference, reference_scheduler
from tests.support.tokenizer_files import clip_merges, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers on NumPy 2

EVERY_SAMPLER = [
    (name, schedule)
    for name in DIFFUSERS
    for schedule in SOLVERS[name].schedules
    if schedule in ("default", "karras")  # test_samplers.py has them all
]
# diffusers' image-to-image corrects a step of PNDM that it has not done, and does not cut the steps of the other two.
WITH_IMAGES = [(name, schedule) for name, schedule in EVERY_SAMPLER if name not in ("plms", "lcm", "tcd")]
MIN_PSNR = 70.0


class Side:
    """One checkpoint in our engine and, on request, in a diffusers pipeline."""

    def __init__(self, directory: Path, architecture: Architecture, merges: list[str]) -> None:
        self.directory, self.architecture = directory, architecture
        path = directory / "random.safetensors"
        write_checkpoint(path, architecture, torch.float32)
        write_tokenizer(directory, merges)
        self.engine = Engine([StableDiffusion.load(path, directory, "cpu", "fp32")], max_batch=4)
        self.weights = load_file(path)
        path.unlink()

    def ours(self, request: Request) -> list[np.ndarray]:
        return self.engine.submit(request).result().images

    def theirs(self, request: Request) -> list[np.ndarray]:
        kind = StableDiffusionPipeline if request.image is None else StableDiffusionImg2ImgPipeline
        scheduler = reference_scheduler(request.sampler, request.schedule, request.steps)
        pipe = reference_pipeline(self.weights, self.architecture, self.directory, scheduler, kind)
        generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        arguments: dict[str, Any] = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "num_images_per_prompt": request.num_images,
            "generator": generators,
            "output_type": "pil",
            # The pipeline hands this to the schedulers that have it, whatever their own default.
            "eta": SOLVERS[request.sampler].options.get("eta", 0.0),
        }
        if request.image is None:
            shape = (1, 4, request.height // 8, request.width // 8)
            noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
            # The pipeline multiplies by its scheduler's init_noise_sigma; k-diffusion starts from noise x sigma_max.
            solver = SOLVERS[request.sampler]
            sigma = solver.grid(request.schedule, v1_schedule(), request.steps)[0]
            start = as_reference(request.sampler, solver.noised(None, noise, sigma), sigma)
            arguments |= {"height": request.height, "width": request.width}
            arguments["latents"] = start / scheduler.init_noise_sigma
        else:
            arguments |= {"image": Image.fromarray(request.image), "strength": request.strength}
        with torch.inference_mode():
            return [np.asarray(picture) for picture in pipe(**arguments).images]


def assert_equal_images(side: Side, request: Request) -> None:
    ours, theirs = side.ours(request), side.theirs(request)
    assert len(ours) == len(theirs) == request.num_images
    assert ours[0].std() > 8, "a flat image would hide mistakes"
    for mine, reference in zip(ours, theirs, strict=True):
        assert psnr(mine, reference) >= MIN_PSNR


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    side = Side(tmp_path_factory.mktemp("tiny"), TINY, [])
    yield side
    side.engine.close()


@pytest.mark.parametrize(("solver", "schedule"), EVERY_SAMPLER)
def test_text_to_image(tiny: Side, solver: str, schedule: str) -> None:
    request = Request(
        "a cat", seed=3, width=64, height=64, negative_prompt="blurred", steps=4, sampler=solver, schedule=schedule
    )
    assert_equal_images(tiny, request)


@pytest.mark.parametrize(("solver", "schedule"), WITH_IMAGES)
def test_image_to_image(tiny: Side, solver: str, schedule: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    request = Request(
        "a cat", seed=4, width=64, height=64, steps=5, sampler=solver, schedule=schedule, image=image, strength=0.65
    )
    assert_equal_images(tiny, request)


@pytest.mark.parametrize("sampler", ["euler_a", "ddim"])
def test_several_images_of_an_odd_size(tiny: Side, sampler: str) -> None:
    request = Request("a cat", seed=5, width=136, height=72, steps=3, num_images=3, sampler=sampler, schedule="default")
    assert_equal_images(tiny, request)


def test_several_images_from_an_image_of_an_odd_size(tiny: Side) -> None:
    image = np.random.default_rng(1).integers(0, 256, (136, 72, 3), dtype=np.uint8)
    request = Request("a cat", seed=6, width=72, height=136, steps=4, num_images=2, sampler="ddpm", schedule="default")
    assert_equal_images(tiny, replace(request, image=image, strength=1.0))


def test_without_guidance(tiny: Side) -> None:
    request = Request("a cat", seed=7, width=64, height=64, steps=3, scale=1.0, sampler="heun", schedule="default")
    assert_equal_images(tiny, request)


def test_a_prompt_longer_than_the_encoder(tiny: Side) -> None:
    request = Request("many words " * 40, seed=8, width=64, height=64, steps=2, sampler="euler", schedule="default")
    request = replace(request, prompt_syntax="plain")
    assert_equal_images(tiny, request)
    warnings = tiny.engine.submit(request).result().warnings
    assert len(warnings) == 1
    assert "prompt is longer than 75 tokens" in warnings[0]


@pytest.mark.full_size
def test_full_size_images_equal_diffusers(tmp_path: Path) -> None:
    """v1.5's own architecture and tokenizer, on an image small enough for two cores."""
    side = Side(tmp_path, FULL, clip_merges())
    request = Request(
        "a lighthouse at dusk",
        seed=9,
        width=72,
        height=64,
        negative_prompt="people",
        steps=2,
        sampler="euler_a",
        schedule="karras",
    )
    image = np.random.default_rng(2).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    assert_equal_images(side, request)
    assert_equal_images(side, replace(request, image=image, strength=0.5))
    side.engine.close()
