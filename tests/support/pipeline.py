"""Pictures run on networks that compute almost nothing."""

from typing import Any

import numpy as np
import torch

from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.request import Request
from sd_core.work import Context, DecodeWork, EncodeWork, HostTask, TextWork, UNetWork
from tests.support.drive import drive


def network(work: Any) -> Any:
    """Networks that make nothing but noise; the posterior's mean is 5, its deviation 1."""
    match work:
        case HostTask(run=run):
            return run()
        case TextWork(prompts=prompts):
            return tuple(Context(prompt, torch.zeros(1, 3, 2)) for prompt in prompts)
        case UNetWork(latents=latents, contexts=contexts):
            return latents[:, :4].expand(len(contexts), -1, -1, -1)
        case EncodeWork(pixels=pixels):
            shape = (1, 4, pixels.shape[2] // 8, pixels.shape[3] // 8)
            return torch.full(shape, 5.0), torch.zeros(shape)
        case DecodeWork(latents=latents):
            return torch.full((1, 3, latents.shape[2] * 8, latents.shape[3] * 8), 0.5)
    raise AssertionError(work)


def generate(model: StableDiffusion, request: Request) -> tuple[list[Any], np.ndarray]:
    """What the request's one picture asks for, and its image."""
    (picture,) = prepare(request, model).pictures
    last, works = drive(picture, network)
    return works, last.run()
