"""Euler, Euler ancestral and Heun.

A step to sigma_next is written x0 + (x - x0) * (sigma_next / sigma). That is the usual
x + (x - x0) / sigma * (sigma_next - sigma) without its subtraction of values as large as x: with zero terminal SNR,
sigma is up to 4,519.
"""

from itertools import pairwise
from math import sqrt

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Call, Sampling


def euler(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Karras et al. 2022, algorithm 2 without churn and without the correction."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        x = x0 + (x - x0) * (sigma_next / sigma)
    return x


def euler_a(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Euler to below the next level, then fresh noise up to it (k-diffusion's `sample_euler_ancestral`, eta 1)."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        sigma_up = min(sigma_next, sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
        sigma_down = sqrt(sigma_next**2 - sigma_up**2)
        x = x0 + (x - x0) * (sigma_down / sigma)
        if sigma_next > 0:
            x = x + noise.draw() * sigma_up
    return x


def heun(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Karras et al. 2022, algorithm 2 without churn: two calls a step, but one for a step to sigma 0."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        slope = (x - x0) / sigma
        euler_x = x0 + slope * sigma_next
        slope_next = (euler_x - (yield Call(euler_x, sigma_next, step, call=1)).x0) / sigma_next
        x = x + (slope + slope_next) / 2 * (sigma_next - sigma)
    return x
