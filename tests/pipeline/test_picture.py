"""An image's coroutine: what it asks for, in which order, and the order in which it draws noise."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_core.groups import MAX_SEED
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise
from sd_core.work import Context, DecodeWork, EncodeWork, TextWork, UNetWork
from tests.support.drive import drive

CPU = torch.device("cpu")
SHAPE = (1, 4, 3, 2)
REQUEST = Request("p", seed=11, width=16, height=24, steps=5, sampler="euler_a", schedule="default")


def generate(model: StableDiffusion, request: Request) -> tuple[list[Any], np.ndarray]:
    """Run an image with stand-ins for the networks; the posterior's mean is 5, its deviation 1."""

    def network(work: Any) -> Any:
        match work:
            case TextWork(prompts=prompts):
                return tuple(Context(prompt, torch.zeros(1, 3, 2)) for prompt in prompts)
            case UNetWork(latents=latents, contexts=contexts):
                return latents.expand(len(contexts), -1, -1, -1)
            case EncodeWork():
                return torch.full(SHAPE, 5.0), torch.zeros(SHAPE)
            case DecodeWork():
                return torch.full((1, 3, 24, 16), 0.5)

    (picture,) = prepare(request, model).pictures
    last, works = drive(picture, network)
    return works, last.run()


def draws(count: int) -> list[Tensor]:
    source = CPUNoise(REQUEST.seed, SHAPE, CPU)
    return [source.draw() for _ in range(count)]


def test_text_to_image_begins_with_the_first_draw(tiny_model: StableDiffusion) -> None:
    works, image = generate(tiny_model, REQUEST)
    assert [type(work) for work in works] == [TextWork] + [UNetWork] * 5 + [DecodeWork]
    sigma = 14.614641
    assert torch.allclose(works[1].latents, draws(1)[0] * sigma / (1 + sigma**2) ** 0.5)
    assert image.shape == (24, 16, 3) and (image == 191).all()
    assert {works[0].network, works[1].network, works[-1].network} == {
        tiny_model.text_key,
        tiny_model.unet_key,
        tiny_model.vae_key,
    }


def test_image_to_image_draws_posterior_then_start_and_takes_the_tail(tiny_model: StableDiffusion) -> None:
    request = replace(REQUEST, image=np.zeros((24, 16, 3), np.uint8), strength=0.61, sampler="ddim")
    works, _ = generate(tiny_model, request)
    assert [type(work) for work in works] == [TextWork, EncodeWork] + [UNetWork] * 3 + [DecodeWork]
    encode, first = works[1], works[2]
    posterior, start = draws(2)
    assert encode.pixels.shape == (1, 3, 24, 16)
    assert first.timestep == pytest.approx(401)
    alpha = float(np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)[:402] ** 2))
    latents = (5 + posterior) * tiny_model.networks.vae.config.scale_factor
    assert torch.allclose(first.latents, alpha**0.5 * latents + (1 - alpha) ** 0.5 * start, atol=1e-5)


def test_strength_one_still_begins_from_the_image(tiny_model: StableDiffusion) -> None:
    works, _ = generate(tiny_model, replace(REQUEST, image=np.full((24, 16, 3), 255, np.uint8), strength=1.0))
    assert [type(work) for work in works] == [TextWork, EncodeWork] + [UNetWork] * 5 + [DecodeWork]
    assert torch.equal(works[1].pixels, torch.ones(1, 3, 24, 16))


def test_equal_images_are_the_same_encode_work(tiny_model: StableDiffusion) -> None:
    def keys(image: np.ndarray) -> set[Any]:
        request = replace(REQUEST, image=image, num_images=2)
        found = set()
        for picture in prepare(request, tiny_model).pictures:
            text = next(picture)
            contexts = tuple(Context(prompt, torch.zeros(1, 3, 2)) for prompt in text.prompts)
            found.add(picture.send(contexts).key)
        return found

    black, white = np.zeros((24, 16, 3), np.uint8), np.full((24, 16, 3), 255, np.uint8)
    assert keys(black) == keys(black.copy()) and len(keys(black)) == 1
    assert keys(black) != keys(white)
    assert keys(black) != keys(black.reshape(16, 24, 3)), "another shape of the same bytes is another image"


def test_seeds_count_up_and_wrap_after_the_largest() -> None:
    assert replace(REQUEST, seed=5, num_images=3).seeds == [5, 6, 7]
    assert replace(REQUEST, seed=MAX_SEED, num_images=2).seeds == [MAX_SEED, 0]
    CPUNoise(MAX_SEED, SHAPE, CPU).draw()
