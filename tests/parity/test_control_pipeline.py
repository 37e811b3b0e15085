"""Whole images with ControlNets and T2I-Adapters beside diffusers' pipelines, on the same random weights and noise."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    T2IAdapter,
)
from PIL import Image

from sd_core.additions import ControlNet
from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from tests.support.controls import (
    TINY_ADAPTER,
    TINY_CONTROLNET,
    adapter_in_diffusers,
    hint_picture,
    library_of,
    random_adapter_weights,
    random_controlnet,
    write_guide,
)
from tests.support.pictures import psnr
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference import reference_controlnet, reference_pipeline
from tests.support.reference_schedulers import as_reference, reference_scheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # diffusers on NumPy 2
    pytest.mark.filterwarnings("ignore:The decode_latents method:FutureWarning"),  # of diffusers' own pipeline
]

MIN_PSNR = 65.0
REQUEST = Request("a cat", seed=3, width=72, height=64, steps=4, sampler="euler", schedule="default")


class Side:
    """Our engine with the files of a folder, and diffusers' pipelines."""

    def __init__(self, model: StableDiffusion, tokenizer: Path, folder: Path) -> None:
        write_guide(folder, "one", random_controlnet())
        write_guide(folder, "two", random_controlnet(seed=5))
        write_guide(folder, "adapter", random_adapter_weights())
        self.engine = Engine([model], max_batch=4, library=library_of(folder))
        self.tokenizer, self.weights = tokenizer, random_state_dict(TINY)

    def ours(self, request: Request) -> np.ndarray:
        (image,) = self.engine.submit(request).result().images
        return image

    def theirs(self, request: Request, networks: dict[str, Any], **arguments: Any) -> np.ndarray:
        scheduler = reference_scheduler(request.sampler, request.schedule, request.steps)
        if "adapter" in networks:
            kind = StableDiffusionAdapterPipeline
        else:
            has_image = request.image is not None
            kind = StableDiffusionControlNetImg2ImgPipeline if has_image else StableDiffusionControlNetPipeline
        pipe = reference_pipeline(self.weights, TINY, self.tokenizer, scheduler, kind, **networks)
        generator = torch.Generator().manual_seed(request.seed)
        images = [Image.fromarray(unit.image) for unit in request.controlnets]
        hints = images[0] if "adapter" in networks else images
        if request.image is None:
            noise = torch.randn((1, 4, request.height // 8, request.width // 8), generator=generator)
            solver = SOLVERS[request.sampler]
            sigma = solver.grid(request.schedule, v1_schedule(), request.steps)[0]
            start = as_reference(request.sampler, solver.noised(None, noise, sigma), sigma)
            arguments |= {"image": hints, "latents": start / scheduler.init_noise_sigma}
        else:
            arguments |= {"image": Image.fromarray(request.image), "control_image": hints, "strength": request.strength}
        with torch.inference_mode():
            pictures = pipe(
                request.prompt,
                height=request.height,
                width=request.width,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                generator=generator,
                output_type="pil",
                **arguments,
            ).images
        return np.asarray(pictures[0])


@pytest.fixture(scope="module")
def side(
    tiny_model: StableDiffusion, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Side]:
    made = Side(tiny_model, tiny_checkpoint.parent, tmp_path_factory.mktemp("controlnet"))
    yield made
    made.engine.close()


def controlled(*units: ControlNet, **changes: Any) -> Request:
    """The request with these units, each with a hint of its own."""
    width, height = changes.get("width", REQUEST.width), changes.get("height", REQUEST.height)
    hints = [replace(unit, image=hint_picture(height, width, index)) for index, unit in enumerate(units)]
    return replace(REQUEST, controlnets=tuple(hints), **changes)


def controlnets(*seeds: int) -> dict[str, Any]:
    return {"controlnet": [reference_controlnet(random_controlnet(seed=seed), TINY_CONTROLNET) for seed in seeds]}


def assert_equal(side: Side, request: Request, networks: dict[str, Any], **arguments: Any) -> None:
    ours = side.ours(request)
    assert psnr(ours, side.theirs(request, networks, **arguments)) >= MIN_PSNR
    assert psnr(ours, side.ours(replace(request, controlnets=()))) < 45, "the control should change the image"


def test_text_to_image(side: Side) -> None:
    assert_equal(side, controlled(ControlNet(model="one")), controlnets(1), controlnet_conditioning_scale=[1.0])


@pytest.mark.slow
def test_a_part_of_the_steps_and_a_weight(side: Side) -> None:
    request = controlled(ControlNet(model="one", weight=1.7, start=0.2, end=0.8), steps=6)
    assert_equal(
        side,
        request,
        controlnets(1),
        controlnet_conditioning_scale=[1.7],
        control_guidance_start=[0.2],
        control_guidance_end=[0.8],
    )


@pytest.mark.slow
def test_several(side: Side) -> None:
    request = controlled(ControlNet(model="one", weight=0.6), ControlNet(model="two", end=0.5))
    scales = {"controlnet_conditioning_scale": [0.6, 1.0], "control_guidance_end": [1.0, 0.5]}
    assert_equal(side, request, controlnets(1, 5), control_guidance_start=[0.0, 0.0], **scales)


@pytest.mark.slow
def test_image_to_image(side: Side) -> None:
    request = controlled(ControlNet(model="one"), image=hint_picture(64, 72, 7), strength=0.65)
    assert_equal(side, request, controlnets(1), controlnet_conditioning_scale=[1.0])


@pytest.mark.slow
def test_only_where_the_prompt_acts(side: Side) -> None:
    """diffusers' guess mode has a slightly other ratio, 0.1 ** (1 / 12) instead of 0.825."""
    request = controlled(ControlNet(model="one", mode="control"))
    ours = side.ours(request)
    theirs = side.theirs(request, controlnets(1), controlnet_conditioning_scale=[1.0], guess_mode=True)
    assert psnr(ours, theirs) >= 50
    assert psnr(side.ours(controlled(ControlNet(model="one", mode="prompt"))), theirs) < 45


def test_a_t2i_adapter(side: Side) -> None:
    adapter = T2IAdapter(
        in_channels=3,
        channels=list(TINY_ADAPTER.channels),
        num_res_blocks=2,
        downscale_factor=8,
        adapter_type="full_adapter",
    )
    adapter.load_state_dict(adapter_in_diffusers(random_adapter_weights(), TINY_ADAPTER))
    request = controlled(ControlNet(model="adapter", weight=0.8))
    assert_equal(side, request, {"adapter": adapter.eval()}, adapter_conditioning_scale=0.8)
