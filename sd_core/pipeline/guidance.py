"""Classifier-free guidance: a sampler's one question becomes the rows that answer it."""

from collections.abc import Generator

import torch
from torch import Tensor

from sd_core.work import Conditioning, Sampling, UNetRows


def guided(
    sampling: Sampling, conditioning: Conditioning, guidance_scale: float
) -> Generator[UNetRows, Tensor, Tensor]:
    """Runs a sampler, answering each of its calls by eps guided away from the negative prompt.

    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance". With a scale <= 1 there is one row and no
    guidance.
    """
    guides = guidance_scale > 1
    context = torch.cat([conditioning.negative, conditioning.positive]) if guides else conditioning.positive
    call = next(sampling)
    while True:
        eps = yield UNetRows(call.latents, call.timestep, context)
        if guides:
            negative, positive = eps.chunk(2)
            eps = negative + guidance_scale * (positive - negative)
        try:
            call = sampling.send(eps)
        except StopIteration as stop:
            latents: Tensor = stop.value
            return latents
