"""A picture's coroutine: what it asks for, in which order, and which noise it draws when."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_core.pipeline.images import to_pixels
from sd_core.pipeline.picture import picture
from sd_core.request import MAX_SEED, Request
from sd_core.sampling.noise import CPUNoise
from sd_core.work import Conditioning, Decode, Encode, UNetRows, Work

CPU = torch.device("cpu")
SHAPE = (1, 4, 3, 2)
REQUEST = Request("p", seed=11, width=16, height=24, steps=5, sampler="euler_a", schedule="default")
CONDITIONING = Conditioning(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))


def make(request: Request) -> tuple[list[Work], Tensor]:
    """Runs a picture on networks that see nothing but noise; the encoder's latents are 5 plus its noise."""
    pixels = None if request.image is None else to_pixels(request.image, CPU)
    making = picture(request, CONDITIONING, CPUNoise(request.seed, SHAPE, CPU), pixels)
    works = [next(making)]
    while True:
        match works[-1]:
            case UNetRows(latents=latents, context=context):
                answer = latents.expand(len(context), -1, -1, -1)
            case Encode(noise=noise):
                answer = 5 + noise
            case Decode(latents=latents):
                answer = latents + 100
        try:
            works.append(making.send(answer))
        except StopIteration as stop:
            return works, stop.value


def draws(count: int) -> list[Tensor]:
    source = CPUNoise(REQUEST.seed, SHAPE, CPU)
    return [source.draw() for _ in range(count)]


def test_text_to_image_begins_with_the_first_draw() -> None:
    works, pixels = make(REQUEST)
    assert [type(work) for work in works] == [UNetRows] * 5 + [Decode]
    assert isinstance(works[0], UNetRows) and isinstance(works[-1], Decode)
    sigma = 14.614641
    assert torch.allclose(works[0].latents, draws(1)[0] * sigma / (1 + sigma**2) ** 0.5)
    assert torch.equal(pixels, works[-1].latents + 100)


def test_image_to_image_draws_posterior_then_start_and_takes_the_tail() -> None:
    request = replace(REQUEST, image=np.zeros((24, 16, 3), np.uint8), strength=0.61, sampler="ddim")
    works, _ = make(request)
    assert [type(work) for work in works] == [Encode] + [UNetRows] * 3 + [Decode]
    encode, first = works[0], works[1]
    assert isinstance(encode, Encode) and isinstance(first, UNetRows)
    posterior, start = draws(2)
    assert encode.pixels.shape == (1, 3, 24, 16)
    assert torch.equal(encode.noise, posterior)
    assert first.timestep == pytest.approx(401)
    alpha = float(np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)[:402] ** 2))
    assert torch.allclose(first.latents, alpha**0.5 * (5 + posterior) + (1 - alpha) ** 0.5 * start, atol=1e-5)


def test_strength_one_still_begins_from_the_picture() -> None:
    works, _ = make(replace(REQUEST, image=np.full((24, 16, 3), 255, np.uint8), strength=1.0))
    assert [type(work) for work in works] == [Encode] + [UNetRows] * 5 + [Decode]
    assert isinstance(works[0], Encode) and torch.equal(works[0].pixels, torch.ones(1, 3, 24, 16))


def test_one_seed_a_picture_wraps_at_the_largest() -> None:
    assert replace(REQUEST, seed=5, num_images=3).seeds == [5, 6, 7]
    assert replace(REQUEST, seed=MAX_SEED, num_images=2).seeds == [MAX_SEED, 0]
    CPUNoise(MAX_SEED, SHAPE, CPU).draw()
