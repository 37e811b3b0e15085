"""A picture in the making, as one coroutine."""

from torch import Tensor

from sd_core.pipeline.guidance import guided
from sd_core.pipeline.watch import Tell, watched
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import Sigmas, tail
from sd_core.work import Conditioning, Decode, Encode, Picture


def sigmas_of(request: Request) -> Sigmas:
    """The noise levels that each picture of this request goes through; one more than it has steps."""
    sigmas = SOLVERS[request.sampler].schedules[request.schedule](request.steps)
    return sigmas if request.image is None else tail(sigmas, request.strength)


def picture(
    request: Request,
    conditioning: Conditioning,
    noise: CPUNoise,
    pixels: Tensor | None = None,
    tell: Tell | None = None,
) -> Picture:
    """Text-to-image, or image-to-image from `pixels` where the request has an image; returns pixels (1, 3, H, W).

    Draws from `noise` in this order: the VAE posterior's sample (image-to-image only), the initial noise, then the
    sampler's own draws.
    """
    solver = SOLVERS[request.sampler]
    sigmas = sigmas_of(request)
    latents = None
    if pixels is not None:
        latents = yield Encode(pixels, noise.draw())
    x = solver.noised(latents, noise.draw(), sigmas[0])
    sampling = solver.run(x, sigmas, noise)
    if tell is not None:
        sampling = watched(sampling, tell)
    latents = yield from guided(sampling, conditioning, request.guidance_scale)
    return (yield Decode(latents))
