"""A picture in the making, as one coroutine."""

from sd_core.contracts import Conditioning, Decode, Encode, GenerationRequest, Picture
from sd_core.pipeline.guidance import guided
from sd_core.pipeline.images import to_pixels
from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import tail


def picture(request: GenerationRequest, conditioning: Conditioning, noise: CPUNoise) -> Picture:
    """Text-to-image, or image-to-image where the request has an image; returns pixels (1, 3, H, W).

    Draws from `noise` in this order: the VAE posterior's sample (image-to-image only), the initial noise, then the
    sampler's own draws.
    """
    solver = SOLVERS[request.sampler]
    sigmas = solver.schedules[request.schedule](request.steps)
    latents = None
    if request.image is not None:
        latents = yield Encode(to_pixels(request.image, noise.device), noise.draw())
        sigmas = tail(sigmas, request.strength)
    x = solver.noised(latents, noise.draw(), sigmas[0])
    latents = yield from guided(solver.run(x, sigmas, noise), conditioning, request.guidance_scale)
    return (yield Decode(latents))
