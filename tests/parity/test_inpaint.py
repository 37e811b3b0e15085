"""Inpainting beside its references, on the same random weights and noise, float32 on the CPU.

A 9-channel checkpoint is compared with diffusers' inpainting pipeline. A 4-channel one is compared with ComfyUI's loop
around a sampler (`KSamplerX0Inpaint`), written out here on diffusers' networks. The references put no kept pixels back,
so only repainted pixels are compared; the kept ones are the sent image's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from torch import Tensor

from sd_core.pipeline import inpaint, start
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from tests.support import sides
from tests.support.random_weights import TINY
from tests.support.sides import IMAGE, Side, pure_noise, side_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on NumPy 2

LEAST_PSNR = 65.0
SCALE_FACTOR = 0.18215
PLAIN = TINY
INPAINTING = replace(TINY, unet=replace(TINY.unet, in_channels=9))

MASK = np.zeros((72, 64), np.uint8)
MASK[13:59, 10:50] = 255  # not on the grid of the latents
REQUEST = replace(sides.REQUEST, mask=MASK, strength=0.65, mask_blur=0)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with side_of(tmp_path_factory.mktemp("inpainting"), INPAINTING) as side:
        yield side


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    with side_of(tmp_path_factory.mktemp("plain"), PLAIN) as side:
        yield side


def psnr(ours: np.ndarray, theirs: np.ndarray, *, everywhere: bool = False) -> float:
    """Over the repainted pixels, or all."""
    assert ours.shape == theirs.shape
    counted = MASK >= 0 if everywhere else MASK > 0
    error = np.square(ours[counted].astype(np.float64) - theirs[counted].astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def by_diffusers(side: Side, request: Request) -> np.ndarray:
    pipe = side.pipeline(StableDiffusionInpaintPipeline, request)
    with torch.inference_mode():
        (image,) = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            image=Image.fromarray(IMAGE),
            mask_image=Image.fromarray(MASK),
            height=request.height,
            width=request.width,
            strength=request.strength,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
        ).images
    return np.asarray(image)


SAMPLERS = [("ddim", "default"), ("euler", "default"), ("euler_a", "default"), ("dpmpp_2m", "karras")]


@pytest.mark.parametrize(("sampler", "schedule"), SAMPLERS)
def test_nine_channels_beside_diffusers(inpainting: Side, sampler: str, schedule: str) -> None:
    request = replace(REQUEST, sampler=sampler, schedule=schedule)
    ours = inpainting.ours(request)
    assert ours[MASK > 0].std() > 8, "a flat image would hide mistakes"
    assert psnr(ours, by_diffusers(inpainting, request)) >= LEAST_PSNR
    assert np.array_equal(ours[MASK == 0], IMAGE[MASK == 0])


@pytest.mark.parametrize(("sampler", "schedule"), [("ddim", "default"), ("dpmpp_2m", "karras")])
def test_nine_channels_without_an_image_beside_diffusers(inpainting: Side, sampler: str, schedule: str) -> None:
    """Text-to-image is inpainting of nothing: the mask is white, what is kept is gray, the run starts from noise."""
    request = replace(REQUEST, sampler=sampler, schedule=schedule, image=None, mask=None, strength=1.0)
    pipe = inpainting.pipeline(StableDiffusionInpaintPipeline, request)
    generator = torch.Generator().manual_seed(request.seed)
    first = pure_noise(request, pipe.scheduler, generator)
    with torch.inference_mode():
        (image,) = pipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            image=Image.fromarray(IMAGE),
            mask_image=Image.fromarray(np.full_like(MASK, 255)),
            height=request.height,
            width=request.width,
            strength=1.0,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            latents=first,
            generator=generator,
        ).images
    ours = inpainting.ours(request)
    assert ours.std() > 8, "a flat image would hide mistakes"
    assert psnr(ours, np.asarray(image), everywhere=True) >= LEAST_PSNR


def with_zeros_kept(channels: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*arguments: Any) -> Any:
        out = yield from channels(*arguments)
        return torch.cat([out[:, :1], torch.zeros_like(out[:, 1:])], dim=1)

    return wrong


def with_mask_last(channels: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*arguments: Any) -> Any:
        out = yield from channels(*arguments)
        return torch.cat([out[:, 1:], out[:, :1]], dim=1)

    return wrong


def with_mask_inverted(channels: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*arguments: Any) -> Any:
        out = yield from channels(*arguments)
        return torch.cat([1 - out[:, :1], out[:, 1:]], dim=1)

    return wrong


@pytest.mark.parametrize("mistake", [with_zeros_kept, with_mask_last, with_mask_inverted])
def test_the_weights_show_mistakes_in_the_channels(
    inpainting: Side, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., Any]
) -> None:
    monkeypatch.setattr(start, "channels_of", mistake(start.channels_of))
    assert psnr(inpainting.ours(REQUEST), by_diffusers(inpainting, REQUEST)) < LEAST_PSNR


def by_comfyui(side: Side, request: Request) -> np.ndarray:
    """ComfyUI's order of events for a latent with a noise mask; `sample_euler` or `sample_dpmpp_2m` of k-diffusion."""
    pipe, canvas = side.pipeline(StableDiffusionInpaintPipeline, request), inpaint.canvas_of(request)
    generator = torch.Generator().manual_seed(request.seed)
    pixels = torch.from_numpy(canvas.image).permute(2, 0, 1)[None].float() / 127.5 - 1
    posterior = pipe.vae.encode(pixels).latent_dist
    clean = (posterior.mean + posterior.std * torch.randn(1, 4, 9, 8, generator=generator)) * SCALE_FACTOR
    noise = torch.randn(1, 4, 9, 8, generator=generator)
    mask = F.interpolate(torch.from_numpy(canvas.mask)[None, None].float() / 255, (9, 8), mode="bilinear")
    positive, negative = pipe.encode_prompt(
        request.prompt, "cpu", 1, do_classifier_free_guidance=True, negative_prompt=request.negative_prompt
    )
    if request.inpaint_fill == "latent_noise":
        clean = clean * (1 - mask) + noise * mask
    if request.inpaint_fill == "latent_nothing":
        clean = clean * (1 - mask)

    def denoised(x: Tensor, sigma: float) -> Tensor:
        x = x * mask + (clean + noise * sigma) * (1 - mask)
        timestep = v1_schedule().timestep(sigma)
        rows = torch.cat([x, x]) / (1 + sigma**2) ** 0.5
        uncond, cond = pipe.unet(rows, timestep, torch.cat([negative, positive])).sample.chunk(2)
        guided = x - sigma * (uncond + request.guidance_scale * (cond - uncond))
        return guided * mask + clean * (1 - mask)

    solver = SOLVERS[request.sampler]
    sigmas = solver.grid(request.schedule, v1_schedule(), request.steps, request.strength)
    x, old, previous = clean + noise * sigmas[0], None, 0.0
    for sigma, sigma_next in pairwise(sigmas):
        now = denoised(x, sigma)
        if request.sampler == "euler":
            x = x + (x - now) / sigma * (sigma_next - sigma)
        elif sigma_next == 0:
            x = now
        else:
            step = log(sigma) - log(sigma_next)
            mean = now
            if old is not None:
                ratio = (log(previous) - log(sigma)) / step
                mean = (1 + 1 / (2 * ratio)) * now - 1 / (2 * ratio) * old
            x = sigma_next / sigma * x - (exp(-step) - 1) * mean
        old, previous = now, sigma
    levels = (pipe.vae.decode(x / SCALE_FACTOR).sample[0].permute(1, 2, 0) + 1) * 127.5
    return levels.clamp(0, 255).round().to(torch.uint8).numpy()


@pytest.mark.parametrize("fill", ["original", "fill", "latent_noise", "latent_nothing"])
@pytest.mark.parametrize(("sampler", "schedule"), [("euler", "default"), ("dpmpp_2m", "karras")])
@pytest.mark.parametrize("blur", [0, 4])
def test_four_channels_beside_comfyui(plain: Side, sampler: str, schedule: str, fill: str, blur: int) -> None:
    request = replace(REQUEST, sampler=sampler, schedule=schedule, mask_blur=blur, inpaint_fill=fill)
    ours = plain.ours(request)
    with torch.inference_mode():
        theirs = by_comfyui(plain, request)
    assert ours[MASK > 0].std() > 8, "a flat image would hide mistakes"
    assert psnr(ours, theirs) >= LEAST_PSNR
    assert np.array_equal(ours[MASK == 0], IMAGE[MASK == 0])


def hard(latents: Tensor, noise: Tensor, mask: Tensor) -> Any:
    return start.bound_to(latents, noise, mask.round())


def without_noise(latents: Tensor, noise: Tensor, mask: Tensor) -> Any:
    return start.bound_to(latents, torch.zeros_like(noise), mask)


def inverted(latents: Tensor, noise: Tensor, mask: Tensor) -> Any:
    return start.bound_to(latents, noise, 1 - mask)


@pytest.mark.parametrize("mistake", [hard, without_noise, inverted])
def test_the_weights_show_mistakes_in_the_blending(
    plain: Side, monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., Any]
) -> None:
    request = replace(REQUEST, sampler="dpmpp_2m", schedule="karras", mask_blur=4)
    with torch.inference_mode():
        theirs = by_comfyui(plain, request)
    right = start.bound_to
    monkeypatch.setattr(start, "bound_to", lambda *arguments: wrong(right, mistake, *arguments))
    assert psnr(plain.ours(request), theirs) < LEAST_PSNR


def wrong(right: Any, mistake: Any, *arguments: Tensor) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "bound_to", right)
        return mistake(*arguments)
