"""Classifier-free guidance: a sampler's question becomes the rows of a forward that answer it."""

from collections.abc import Generator

from torch import Tensor

from sd_core.pipeline.conditioning import Conditioning, Rows
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Call, Prediction, Sampling, UNetWork, answering


def guided(
    sampling: Sampling,
    model: StableDiffusion,
    conditioning: Conditioning,
    guidance_scale: float,
    *,
    reads_uncond: bool = False,
) -> Generator[UNetWork, Tensor, Tensor]:
    """Run a sampler, answering each of its calls by a prediction guided away from the negative prompt.

    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance"; with several weighted prompts, Liu et al. 2022,
    "Compositional Visual Generation with Composable Diffusion Models", equation 12. With a scale <= 1 there is no
    guidance, and no row for the negative prompt unless the sampler reads the unconditional prediction.
    """
    denoiser = model.denoiser
    is_guided = guidance_scale > 1 or reads_uncond

    def answer(call: Call) -> Generator[UNetWork, Tensor, Prediction]:
        rows = conditioning.at(call)
        is_alone = len(rows.positive) == 1 and not is_guided
        contexts = tuple(context for context, _ in rows.positive)
        if not is_alone:
            contexts = (rows.negative, *contexts)
        latents, timestep = denoiser.scaled(call.x, call.sigma), denoiser.timestep(call.sigma)
        output = yield UNetWork(model.unet_key, latents, timestep, contexts, (0,) * len(contexts))
        if is_alone:
            x0 = denoiser.x0(call.x, call.sigma, output)
            return Prediction(x0, x0)
        uncond = output[:1]
        # The combination is affine, so it can be taken of the networks' outputs as well as of their predictions.
        joined = uncond + guidance_scale * _direction(output[1:], uncond, rows)
        return Prediction(denoiser.x0(call.x, call.sigma, joined), denoiser.x0(call.x, call.sigma, uncond))

    return answering(sampling, answer)


def _direction(outputs: Tensor, uncond: Tensor, rows: Rows) -> Tensor:
    """The weighted sum of the differences that the prompts make."""
    (_, weight), *_ = rows.positive
    if len(rows.positive) == 1 and weight == 1:
        return outputs - uncond
    weights = outputs.new_tensor([weight for _, weight in rows.positive])[:, None, None, None]
    return (weights * (outputs - uncond)).sum(dim=0, keepdim=True)
