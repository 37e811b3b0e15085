"""instruct-pix2pix beside diffusers' pipeline, on the same random weights and noise, float32 on the CPU."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image

from sd_core.errors import InvalidRequest
from sd_core.nested import Hires
from sd_core.pipeline import guidance, start
from sd_core.request import Request
from tests.support import sides
from tests.support.pictures import levels_apart, psnr
from tests.support.random_weights import TINY
from tests.support.sides import IMAGE, Side, pure_noise, side_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2

MIN_PSNR = 65.0
EDITING = replace(TINY, unet=replace(TINY.unet, in_channels=8))
REQUEST = replace(sides.REQUEST, prompt="make it a cat")


def by_diffusers(side: Side, request: Request) -> np.ndarray:
    pipe = side.pipeline(StableDiffusionInstructPix2PixPipeline, request)
    generator = torch.Generator().manual_seed(request.seed)
    first = pure_noise(request, pipe.scheduler, generator)
    with torch.inference_mode():
        (image,) = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            image=Image.fromarray(request.image),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            image_guidance_scale=request.image_scale,
            latents=first,
            generator=generator,
        ).images
    return np.asarray(image)


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with side_of(tmp_path_factory.mktemp("editing"), EDITING) as side:
        yield side


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_scale": 1.0},
        {"image_scale": 3.0, "scale": 2.0},
        {"do_scale": False},
        {"sampler": "ddim"},
        {"sampler": "dpmpp_2m", "schedule": "karras", "strength": 0.3},
        {"sampler": "euler_a", "strength_steps": "exact"},
    ],
    ids=str,
)
def test_edits_are_diffusers(side: Side, changes: dict[str, Any]) -> None:
    """Whatever the strength: an edit begins with pure noise."""
    request = replace(REQUEST, **changes)
    ours = side.ours(request)
    assert ours.std() > 8, "a flat image would hide mistakes"
    assert psnr(ours, by_diffusers(side, replace(request, scale=request.guidance_scale))) >= MIN_PSNR


def scaled(channels: Any) -> Any:
    def wrong(*arguments: Any) -> Any:
        return (yield from channels(*arguments)) * 0.18215

    return wrong


def swapped(channels: Any) -> Any:
    def wrong(*arguments: Any) -> Any:
        return (yield from channels(*arguments)).flip(0)

    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("mistake", [scaled, swapped])
def test_the_weights_show_mistakes_in_the_channels(side: Side, monkeypatch: pytest.MonkeyPatch, mistake: Any) -> None:
    monkeypatch.setattr(start, "edited_channels", mistake(start.edited_channels))
    assert psnr(side.ours(REQUEST), by_diffusers(side, REQUEST)) < MIN_PSNR


def test_edits_of_several_kinds_share_a_batch(side: Side) -> None:
    """With and without guidance, of other images and scales; each as if it were alone."""
    requests = [
        REQUEST,
        replace(REQUEST, image=IMAGE[::-1].copy(), image_scale=2.5, seed=4),
        replace(REQUEST, do_scale=False, seed=5),
        replace(REQUEST, pag_scale=2.0, guidance_end=0.5, seed=6),
    ]
    alone = [side.ours(request) for request in requests]
    together = [side.engine.submit(request) for request in requests]
    for one, future in zip(alone, together, strict=True):
        (image,) = future.result().images
        assert levels_apart(image, one) <= 1


def test_a_second_pass_edits_the_same_image(side: Side) -> None:
    hires = Hires(scale=2.0, upscaler="latent", steps=2, strength=0.5)
    image = side.ours(replace(REQUEST, hires=hires))
    assert image.shape == (144, 128, 3)
    other = side.ours(replace(REQUEST, hires=hires, image=255 - IMAGE))
    assert psnr(image, other) < 30


def test_a_mask_keeps_what_is_not_edited(side: Side) -> None:
    mask = np.zeros((72, 64), np.uint8)
    mask[20:50, 16:48] = 255
    image = side.ours(replace(REQUEST, mask=mask, mask_blur=0))
    assert np.array_equal(image[mask == 0], IMAGE[mask == 0])
    assert psnr(image, IMAGE) < 20


def test_an_edit_needs_an_image(side: Side) -> None:
    with pytest.raises(InvalidRequest, match="image: the model 'random' edits images, so it needs one"):
        side.engine.submit(replace(REQUEST, image=None)).result()


def test_the_third_row_is_left_out_if_it_does_nothing(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    work = guidance.UNetWork

    def counted(*arguments: Any, **named: Any) -> Any:
        counts.append((len(arguments[1]), len(arguments[3])))
        return work(*arguments, **named)

    monkeypatch.setattr(guidance, "UNetWork", counted)
    for changes in ({}, {"image_scale": 1.0}, {"do_scale": False}):
        side.ours(replace(REQUEST, steps=1, **changes))
    assert counts == [(2, 3), (1, 2), (1, 1)]
