"""How a sampler asks the model, in the two spaces that samplers work in.

In k-diffusion's space x = x0 + sigma * noise; in the variance-preserving space of DDPM and DDIM the same latents are
x = (x0 + sigma * noise) / sqrt(1 + sigma^2), which is what the UNet was trained on.
"""

from collections.abc import Generator
from math import sqrt

from torch import Tensor

from sd_core.sampling.schedule import v1_schedule
from sd_core.work import UNetCall


def predict_eps(x: Tensor, sigma: float, step: int) -> Generator[UNetCall, Tensor, Tensor]:
    """The noise in variance-preserving latents x (1, 4, h, w)."""
    eps = yield UNetCall(x, v1_schedule().timestep(sigma), sigma, step)
    return eps


def predict_x0(x: Tensor, sigma: float, step: int) -> Generator[UNetCall, Tensor, Tensor]:
    """The clean latents in x = x0 + sigma * noise."""
    eps = yield from predict_eps(x / sqrt(1 + sigma**2), sigma, step)
    return x - sigma * eps
