"""DPM-Solver and DPM-Solver++, deterministic and ancestral."""

from itertools import pairwise
from math import expm1, log, sqrt

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.sampling.steps import Churn, ancestral
from sd_core.work import Call, Sampling


def dpm2(x: Tensor, sigmas: Sigmas, noise: NoiseSource, **churning: float) -> Sampling:
    """Lu et al. 2022, "DPM-Solver", algorithm 1 with r1 = 1/2 (k-diffusion's `sample_dpm_2`)."""
    churn = Churn(noise, len(sigmas) - 1, **churning)
    for step, (level, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn.raised(x, level)
        x = yield from _midpoint_step(x, sigma, sigma_next, step)
    return x


def dpm2_a(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0) -> Sampling:
    """`dpm2` to below the next level, then fresh noise up to it (k-diffusion's `sample_dpm_2_ancestral`)."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = ancestral(sigma, sigma_next, eta)
        x = yield from _midpoint_step(x, sigma, down, step)
        if sigma_next > 0:
            x = x + noise.draw() * (s_noise * up)
    return x


def dpmpp_2s_a(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0) -> Sampling:
    """Lu et al. 2022, "DPM-Solver++", algorithm 1 with r = 1/2, to below the next level, then fresh noise up to it.

    Source: k-diffusion's `sample_dpmpp_2s_ancestral`; with eta 0 it is DPM-Solver++(2S) itself.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        down, up = ancestral(sigma, sigma_next, eta)
        middle = sqrt(sigma * down)
        x_middle = x0 + (x - x0) * (middle / sigma)
        x0 = (yield Call(x_middle, middle, step, call=1)).x0
        x = x0 + (x - x0) * (down / sigma) + noise.draw() * (s_noise * up)
    return x


def dpmpp_2m(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Second-order multistep: Lu et al. 2022, "DPM-Solver++", algorithm 2; the first and last step are of order one.

    With lambda = -log sigma and h its increase over a step, x <- (sigma_next / sigma) x + (1 - exp(-h)) x0.
    """
    previous_x0, previous_h = x, 0.0
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        h = log(sigma / sigma_next)
        denoised = x0 if step == 0 else x0 + (x0 - previous_x0) * (h / (2 * previous_h))
        x = (sigma_next / sigma) * x - expm1(-h) * denoised
        previous_x0, previous_h = x0, h
    return x


def dpmpp_2m_cfg_pp(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """`dpmpp_2m` with CFG++ (Chung et al. 2024): the noise that is kept is not guided (ComfyUI's `dpmpp_2m_cfg_pp`)."""
    previous_uncond, previous_h = x, 0.0
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        prediction = yield Call(x, sigma, step)
        x0, uncond = prediction.x0, prediction.x0_uncond
        if sigma_next == 0:
            return x0
        h = log(sigma / sigma_next)
        x = x0 + (sigma_next / sigma) * (x - uncond)
        if step > 0:
            x = x - (expm1(-h) * h / (2 * previous_h)) * (x0 - previous_uncond)
        previous_uncond, previous_h = uncond, h
    return x


def _midpoint_step(x: Tensor, sigma: float, sigma_next: float, step: int) -> Sampling:
    """A step along the slope at its middle, in log sigma; one call for a step to sigma 0."""
    x0 = (yield Call(x, sigma, step)).x0
    if sigma_next == 0:
        return x0
    middle = sqrt(sigma * sigma_next)
    x_middle = x0 + (x - x0) * (middle / sigma)
    x0 = (yield Call(x_middle, middle, step, call=1)).x0
    return x + (x_middle - x0) / middle * (sigma_next - sigma)
