"""One image, from its prompts to its pixels, as a coroutine."""

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from sd_core.pipeline.conditioning import Prompts, encoded
from sd_core.pipeline.images import PendingImage
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run, sample
from sd_core.pipeline.watch import OnStep
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.work import DecodeWork, EncodeWork, HostTask, Picture


@dataclass(frozen=True)
class Source:
    """The image that image-to-image starts from: pixels (1, 3, H, W) in [-1, 1]; equal keys mean equal pixels."""

    key: Hashable
    pixels: Tensor


def picture(
    request: Request,
    model: StableDiffusion,
    prompts: Prompts,
    noise: NoiseSource,
    source: Source | None = None,
    on_step: OnStep | None = None,
) -> Picture:
    """Text-to-image, or image-to-image from `source`.

    Draws from `noise` in this order: the VAE posterior's sample (image-to-image only), the initial noise, then the
    sampler's own draws.
    """
    conditioning = yield from encoded(prompts, model)
    latents = None
    if source is not None:
        mean, logvar = yield EncodeWork(model.vae_key, source.key, source.pixels)
        latents = model.networks.vae.sample(mean, logvar, noise.posterior())
    latents = yield from sample(Run.of(request), model, conditioning, latents, noise, on_step)
    pixels = yield DecodeWork(model.vae_key, latents)
    return HostTask(PendingImage(pixels).wait)
