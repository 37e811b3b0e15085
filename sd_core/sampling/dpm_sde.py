"""DPM-Solver++ for the stochastic differential equation, with the noise of a Brownian path.

Source: Lu et al. 2022, "DPM-Solver++", section 5, as in k-diffusion. lambda = -log sigma and h is its increase over a
step. `eta` 0 is the deterministic solver, 1 the stochastic one.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import exp, expm1, log, sqrt

import torch
from torch import Tensor

from sd_core.sampling.noise import Interval, NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.sampling.steps import ancestral
from sd_core.work import Call, Sampling


def dpmpp_sde(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0) -> Sampling:
    """Two calls a step, the second one at its middle in log sigma (k-diffusion's `sample_dpmpp_sde`, r = 1/2)."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        to_middle, to_next = intervals_of_a_step(sigma, sigma_next)
        middle = sqrt(sigma * sigma_next)
        down, up = ancestral(sigma, middle, eta)
        x_middle = x0 + (x - x0) * (down / sigma) + noise.between(*to_middle) * (s_noise * up)
        x0 = (yield Call(x_middle, middle, step, call=1)).x0
        down, up = ancestral(sigma, sigma_next, eta)
        x = x0 + (x - x0) * (down / sigma) + noise.between(*to_next) * (s_noise * up)
    return x


def dpmpp_2m_sde(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0) -> Sampling:
    """Second-order multistep (k-diffusion's `sample_dpmpp_2m_sde`, solver type midpoint)."""
    return _multistep(x, sigmas, noise, eta, s_noise, lambda h: -expm1(-h) / 2)


def dpmpp_2m_sde_heun(
    x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0
) -> Sampling:
    """Second-order multistep (k-diffusion's `sample_dpmpp_2m_sde`, solver type heun)."""
    return _multistep(x, sigmas, noise, eta, s_noise, _phi_2)


def dpmpp_3m_sde(x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float = 1.0, s_noise: float = 1.0) -> Sampling:
    """Third-order multistep (k-diffusion's `sample_dpmpp_3m_sde`)."""
    past: list[tuple[Tensor, float]] = []  # the last two clean latents with the step that followed each, newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        h = log(sigma / sigma_next)
        decay = h * (1 + eta)
        x = exp(-decay) * x - expm1(-decay) * x0
        if past:
            x = x + _correction(x0, past, h, decay)
        x = x + noise.between(sigma, sigma_next) * _fresh(sigma_next, eta * h, s_noise)
        past = [(x0, h), *past[:1]]
    return x


def intervals_of_a_step(sigma: float, sigma_next: float) -> tuple[Interval, Interval]:
    """The intervals of the Brownian path that a step of `dpmpp_sde` asks for: to its middle, and all of it.

    k-diffusion takes the logarithm of float32 levels and back. The path depends on every digit, so this does the same.
    """
    start, end = (-torch.tensor([sigma, sigma_next]).log()).unbind()
    levels = torch.stack([start, start + (end - start) * 0.5, end]).neg().exp().tolist()
    return (levels[0], levels[1]), (levels[0], levels[2])


def two_intervals_a_step(sigmas: Sigmas) -> Sequence[Interval]:
    return [
        interval
        for sigma, sigma_next in pairwise(sigmas)
        if sigma_next > 0
        for interval in intervals_of_a_step(sigma, sigma_next)
    ]


def one_interval_a_step(sigmas: Sigmas) -> Sequence[Interval]:
    return [(sigma, sigma_next) for sigma, sigma_next in pairwise(sigmas) if sigma_next > 0]


def _multistep(
    x: Tensor, sigmas: Sigmas, noise: NoiseSource, eta: float, s_noise: float, weight: Callable[[float], float]
) -> Sampling:
    previous_x0, previous_h = x, 0.0
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        h = log(sigma / sigma_next)
        decay = h * (1 + eta)
        x = exp(-decay) * x - expm1(-decay) * x0
        if step > 0:
            x = x + (x0 - previous_x0) * (weight(decay) * h / previous_h)
        x = x + noise.between(sigma, sigma_next) * _fresh(sigma_next, eta * h, s_noise)
        previous_x0, previous_h = x0, h
    return x


def _correction(x0: Tensor, past: list[tuple[Tensor, float]], h: float, decay: float) -> Tensor:
    """The slope over a step by the last clean latents, and with two of them the curvature."""
    (newer, newer_h), *older = past
    slope = (x0 - newer) * (h / newer_h)
    if not older:
        return _phi_2(decay) * slope
    ((oldest, oldest_h),) = older
    bend = (slope - (newer - oldest) * (h / oldest_h)) * (h / (newer_h + oldest_h))
    return _phi_2(decay) * (slope + bend * (newer_h / h)) - (_phi_2(decay) / decay - 0.5) * bend


def _phi_2(h: float) -> float:
    return expm1(-h) / h + 1


def _fresh(sigma_next: float, decay: float, s_noise: float) -> float:
    """The deviation of the noise that a step adds."""
    return s_noise * sigma_next * sqrt(-expm1(-2 * decay))
