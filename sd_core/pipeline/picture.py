"""One image, from its prompts to its pixels, as a coroutine."""

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from sd_core.pipeline.guidance import guided
from sd_core.pipeline.images import PendingImage
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.watch import OnStep, watched
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import Sigmas
from sd_core.work import DecodeWork, EncodeWork, HostTask, Picture, TextWork


@dataclass(frozen=True)
class Source:
    """The image that image-to-image starts from: pixels (1, 3, H, W) in [-1, 1]; equal keys mean equal pixels."""

    key: Hashable
    pixels: Tensor


def grid_of(request: Request, model: StableDiffusion) -> tuple[Sigmas, int]:
    """The noise levels that each image of a request goes through, and the calls that its sampler makes on the way."""
    solver = SOLVERS[request.sampler]
    strength = None if request.image is None else request.strength
    sigmas = solver.grid(request.schedule, model.denoiser.schedule, request.steps, strength)
    return sigmas, solver.calls(sigmas)


def picture(
    request: Request,
    model: StableDiffusion,
    prompts: tuple[tuple[int, ...], tuple[int, ...]],
    noise: NoiseSource,
    source: Source | None = None,
    on_step: OnStep | None = None,
) -> Picture:
    """Text-to-image, or image-to-image from `source`; `prompts` are the ids of the prompt and the negative prompt.

    Draws from `noise` in this order: the VAE posterior's sample (image-to-image only), the initial noise, then the
    sampler's own draws.
    """
    solver = SOLVERS[request.sampler]
    sigmas, _ = grid_of(request, model)
    positive, negative = yield TextWork(model.text_key, prompts)
    latents = None
    if source is not None:
        mean, logvar = yield EncodeWork(model.vae_key, source.key, source.pixels)
        latents = model.networks.vae.sample(mean, logvar, noise.draw())
    x = solver.noised(latents, noise.draw(), sigmas[0])
    sampling = solver.run(x, sigmas, noise, solver.options)
    if on_step is not None:
        sampling = watched(sampling, on_step)
    latents = yield from guided(
        sampling,
        model.denoiser,
        model.unet_key,
        positive,
        negative,
        request.guidance_scale,
        reads_uncond=solver.reads_uncond,
    )
    pixels = yield DecodeWork(model.vae_key, latents)
    return HostTask(PendingImage(pixels).wait)
