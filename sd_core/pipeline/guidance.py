"""Classifier-free guidance: a sampler's question becomes the rows of a forward that answer it."""

from collections.abc import Generator

from torch import Tensor

from sd_core.sampling.denoise import Denoiser
from sd_core.work import Call, Context, Prediction, Sampling, UNetWork, answering


def guided(
    sampling: Sampling,
    denoiser: Denoiser,
    network: str,
    positive: Context,
    negative: Context,
    guidance_scale: float,
    *,
    reads_uncond: bool = False,
) -> Generator[UNetWork, Tensor, Tensor]:
    """Run a sampler, answering each of its calls by a prediction guided away from the negative prompt.

    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance". With a scale <= 1 there is one row and no
    guidance, unless the sampler reads the unconditional prediction.
    """
    is_guided = guidance_scale > 1 or reads_uncond
    contexts = (negative, positive) if is_guided else (positive,)
    image_of_row = (0,) * len(contexts)

    def answer(call: Call) -> Generator[UNetWork, Tensor, Prediction]:
        latents, timestep = denoiser.scaled(call.x, call.sigma), denoiser.timestep(call.sigma)
        output = yield UNetWork(network, latents, timestep, contexts, image_of_row)
        if not is_guided:
            x0 = denoiser.x0(call.x, call.sigma, output)
            return Prediction(x0, x0)
        uncond, cond = output.chunk(2)
        # The combination is affine, so it can be taken of the networks' outputs as well as of their predictions.
        joined = uncond + guidance_scale * (cond - uncond)
        return Prediction(denoiser.x0(call.x, call.sigma, joined), denoiser.x0(call.x, call.sigma, uncond))

    return answering(sampling, answer)
