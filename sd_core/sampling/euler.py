"""Euler and Euler ancestral, each also with CFG++.

A step to sigma_next is written x0 + (x - x0) * (sigma_next / sigma). That is the usual
x + (x - x0) / sigma * (sigma_next - sigma) without its subtraction of values as large as x: with zero terminal SNR,
sigma is up to 4,519.
"""

from itertools import pairwise

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.sampling.steps import Churn, ancestral
from sd_core.work import Call, Sampling


def euler(x: Tensor, sigmas: Sigmas, noise: NoiseSource, **churning: float) -> Sampling:
    """Karras et al. 2022, algorithm 2 without the correction."""
    churn = Churn(noise, len(sigmas) - 1, **churning)
    for step, (level, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn.raised(x, level)
        x0 = (yield Call(x, sigma, step)).x0
        x = x0 + (x - x0) * (sigma_next / sigma)
    return x


def euler_a(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0) -> Sampling:
    """Euler to below the next level, then fresh noise up to it (k-diffusion's `sample_euler_ancestral`)."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        down, up = ancestral(sigma, sigma_next, eta)
        x = x0 + (x - x0) * (down / sigma)
        if sigma_next > 0:
            x = x + noise.draw() * (s_noise * up)
    return x


def euler_cfg_pp(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Chung et al. 2024, "CFG++", algorithm 2: the clean latents are guided, the noise that is added again is not."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        prediction = yield Call(x, sigma, step)
        x = prediction.x0 + (x - prediction.x0_uncond) * (sigma_next / sigma)
    return x


def euler_a_cfg_pp(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0) -> Sampling:
    """`euler_cfg_pp` to below the next level, then fresh noise up to it (ComfyUI's `euler_ancestral_cfg_pp`)."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        prediction = yield Call(x, sigma, step)
        down, up = ancestral(sigma, sigma_next, eta)
        x = prediction.x0 + (x - prediction.x0_uncond) * (down / sigma)
        if sigma_next > 0:
            x = x + noise.draw() * (s_noise * up)
    return x
