"""DDPM and DDIM.

They ask in k-diffusion's space x0 + sigma * noise like every solver, and step in the variance-preserving one,
x = sqrt(alpha) * x0 + sqrt(1 - alpha) * noise, which is the same divided by sqrt(1 + sigma^2).
"""

from itertools import pairwise
from math import sqrt

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Call, Sampling


def alpha_of(sigma: float) -> float:
    """The signal's share of the power at this noise level (`alphas_cumprod`)."""
    return 1 / (1 + sigma**2)


def ddpm(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Ancestral sampling with the posterior's own variance ("fixed small"): Ho et al. 2020, equations 6 and 7."""
    x = x * sqrt(alpha_of(sigmas[0]))
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        alpha, alpha_next = alpha_of(sigma), alpha_of(sigma_next)
        x0 = (yield Call(x / sqrt(alpha), sigma, step)).x0
        step_alpha = alpha / alpha_next
        x = (sqrt(alpha_next) * (1 - step_alpha) * x0 + sqrt(step_alpha) * (1 - alpha_next) * x) / (1 - alpha)
        if sigma_next > 0:
            x = x + sqrt((1 - alpha_next) / (1 - alpha) * (1 - step_alpha)) * noise.draw()
    return x


def ddim(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 0.0) -> Sampling:
    """Song et al. 2020, "Denoising Diffusion Implicit Models", equation 12: deterministic with eta 0, DDPM with 1."""
    x = x * sqrt(alpha_of(sigmas[0]))
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        alpha, alpha_next = alpha_of(sigma), alpha_of(sigma_next)
        x0 = (yield Call(x / sqrt(alpha), sigma, step)).x0
        eps = (x - sqrt(alpha) * x0) / sqrt(1 - alpha)
        fresh = eta * sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
        x = sqrt(alpha_next) * x0 + sqrt(1 - alpha_next - fresh**2) * eps
        if fresh > 0:
            x = x + fresh * noise.draw()
    return x
