"""One image, from its prompts to its pixels, as a coroutine."""

from torch import Tensor

from sd_core.pipeline.conditioning import Prompts, encoded
from sd_core.pipeline.hires import Second, second_start
from sd_core.pipeline.images import PendingImage, Source
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run, sample
from sd_core.pipeline.watch import OnStep, after
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.work import DecodeWork, EncodeWork, HostTask, Picture


def picture(
    request: Request,
    model: StableDiffusion,
    prompts: Prompts,
    noise: NoiseSource,
    source: Source | None = None,
    on_step: OnStep | None = None,
    second: Second | None = None,
) -> Picture:
    """Text-to-image, or image-to-image from `source`.

    Draws from `noise` in this order: the VAE posterior's sample (image-to-image only), the initial noise, then the
    sampler's own draws. With `second`, the result goes through a hires pass, which draws from its own noise alike.
    """
    runs = Run.all_of(request)
    conditioning = yield from encoded(prompts, model)
    latents: Tensor | None = None
    if source is not None:
        mean, logvar = yield EncodeWork(model.vae_key, source.key, source.pixels, request.tiling)
        latents = model.networks.vae.sample(mean, logvar, noise.posterior())
    latents = yield from sample(runs[0], model, conditioning, latents, noise, on_step)
    if second is not None:
        conditioning = yield from encoded(second.prompts, model, conditioning)
        start = yield from second_start(request, model, latents, second)
        if on_step is not None:
            on_step = after(len(runs[0].grid(model)) - 1, runs[0].calls(model), on_step)
        latents = yield from sample(runs[1], model, conditioning, start, second.noise, on_step)
    pixels = yield DecodeWork(model.vae_key, latents, request.tiling)
    return HostTask(PendingImage(pixels).wait)
