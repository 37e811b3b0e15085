"""Euler, Euler ancestral and Heun, in k-diffusion's space x = x0 + sigma * noise."""

from itertools import pairwise
from math import sqrt

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.predict import predict_x0
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Sampling


def euler(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Karras et al. 2022, algorithm 2 without churn and without the correction."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = yield from predict_x0(x, sigma, step)
        x = x + (x - x0) / sigma * (sigma_next - sigma)
    return x


def euler_a(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Euler to below the next level, then fresh noise up to it (k-diffusion's `sample_euler_ancestral`, eta 1)."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = yield from predict_x0(x, sigma, step)
        sigma_up = min(sigma_next, sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
        sigma_down = sqrt(sigma_next**2 - sigma_up**2)
        x = x + (x - x0) / sigma * (sigma_down - sigma)
        if sigma_next > 0:
            x = x + noise.draw() * sigma_up
    return x


def heun(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Karras et al. 2022, algorithm 2 without churn: two calls a step, one for the last."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        slope = (x - (yield from predict_x0(x, sigma, step))) / sigma
        euler_x = x + slope * (sigma_next - sigma)
        if sigma_next == 0:
            return euler_x
        slope_next = (euler_x - (yield from predict_x0(euler_x, sigma_next, step))) / sigma_next
        x = x + (slope + slope_next) / 2 * (sigma_next - sigma)
    return x
