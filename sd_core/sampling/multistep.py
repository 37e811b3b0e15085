"""Linear multistep methods: they integrate the slope d = (x - x0) / sigma over sigma from its last values.

A step to sigma 0 takes the clean latents themselves where the method's own sources do.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log, sqrt

import numpy as np
from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Call, Sampling

MAX_ORDER = 4

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""The weights of the last slopes, newest first, for steps of equal length."""

Weights = Callable[[Sequence[float]], Sequence[float]]
"""The weights of the last slopes, newest first, from the levels of the slopes, oldest first, and the next level."""


def lms(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Integrates the polynomial through the last four slopes exactly (k-diffusion's `sample_lms`)."""
    slopes: list[Tensor] = []
    for step, sigma in enumerate(sigmas[:-1]):
        x0 = (yield Call(x, sigma, step)).x0
        slopes = [(x - x0) / sigma, *slopes[: MAX_ORDER - 1]]
        weights = lagrange_weights(sigmas[step + 1 - len(slopes) : step + 2])
        x = _stepped(x0, slopes, sigma, weights)
    return x


def ipndm(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds", without its first corrections.

    The weights are those of equal steps whatever the grid (diff-sampler's and ComfyUI's `ipndm`).
    """
    return _improved_pndm(x, sigmas, lambda levels: ADAMS_BASHFORTH[len(levels) - 2])


def ipndm_v(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """`ipndm` with weights that depend on the lengths of the last steps, as diff-sampler published them."""
    return _improved_pndm(x, sigmas, _variable_weights)


def plms(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Liu et al. 2022 with the first step corrected by a second call (CompVis' PLMS, diffusers' PNDMScheduler)."""
    slopes: list[Tensor] = []
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        slopes = [(x - x0) / sigma, *slopes[: MAX_ORDER - 1]]
        h, used = sigma_next - sigma, slopes
        weights = [weight * h for weight in ADAMS_BASHFORTH[len(slopes) - 1]]
        if step == 0 and len(sigmas) > 2:
            ahead = _stepped(x0, slopes, sigma, weights)
            ahead_x0 = (yield Call(ahead, sigma_next, step, call=1)).x0
            used, weights = [*slopes, (ahead - ahead_x0) / sigma_next], [h / 2, h / 2]
        x = _stepped(x0, used, sigma, weights)
    return x / sqrt(1 + sigmas[-1] ** 2)


def one_call_more(sigmas: Sigmas) -> int:
    """One call a step, and one that corrects the first step if there are several."""
    return len(sigmas) - 1 + (len(sigmas) > 2)


def deis(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator", rho-AB of order 2 in log rho.

    Source: diffusers' DEISMultistepScheduler; rho is sigma. The slope is linear in log sigma between its last two
    values.
    """
    previous, previous_sigma = x, 0.0
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        slope = (x - x0) / sigma
        x = x0 + slope * sigma_next
        if step > 0:
            # The integral of log(s / sigma) from sigma to sigma_next.
            area = sigma_next * (log(sigma_next / sigma) - 1) + sigma
            x = x + (slope - previous) * (area / log(sigma / previous_sigma))
        previous, previous_sigma = slope, sigma
    return x


def lagrange_weights(levels: Sequence[float]) -> list[float]:
    """The integral of each Lagrange polynomial from the last but one level to the last one.

    The polynomials are those through all levels but the last; newest first.
    """
    *known, start, end = levels
    # Relative to `start`, where the numbers are small, so that no digits are lost.
    nodes = [start - start, *(level - start for level in reversed(known))]
    weights = []
    for index, node in enumerate(nodes):
        others = [other for place, other in enumerate(nodes) if place != index]
        integral = np.polyint(np.poly(others) if others else np.ones(1))
        scale = np.prod([node - other for other in others])
        weights.append(float(np.polyval(integral, end - start) / scale))
    return weights


def _improved_pndm(x: Tensor, sigmas: Sigmas, weights: Weights) -> Sampling:
    slopes: list[Tensor] = []
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        if sigma_next == 0:
            return x0
        slopes = [(x - x0) / sigma, *slopes[: MAX_ORDER - 1]]
        levels = sigmas[step + 1 - len(slopes) : step + 2]
        x = _stepped(x0, slopes, sigma, [weight * (sigma_next - sigma) for weight in weights(levels)])
    return x


def _stepped(x0: Tensor, slopes: Sequence[Tensor], sigma: float, weights: Sequence[float]) -> Tensor:
    """x + the weighted slopes, newest first. The weights are those of a step: their sum is its length.

    Written as Euler's step and its corrections: it does not subtract two values as large as x = x0 + sigma * newest.
    """
    newest = slopes[0]
    x = x0 + newest * (sigma + sum(weights))
    for slope, weight in zip(slopes[1:], weights[1:], strict=True):
        x = x + (slope - newest) * weight
    return x


def _variable_weights(levels: Sequence[float]) -> Sequence[float]:
    """diff-sampler's weights. From the third order on they differ from those of Adams and Bashforth on uneven grids.

    Those of the fourth order do not even add up to 1 there.
    """
    h, *before = reversed([after - level for level, after in pairwise(levels)])
    if not before:
        return (1.0,)
    ratio = h / before[0]
    weights = np.array([1 + ratio / 2, -ratio / 2, 0.0, 0.0])
    if len(before) >= 2:
        h1, h2 = before[:2]
        third = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        weights += third * np.array([1, -(1 + h1 / h2), h1 / h2, 0])
    if len(before) >= 3:
        h1, h2, h3 = before[:3]
        share = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        fourth = share * (h * (h + h1) * (h + h1 + h2)) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        spread = h1 * (h1 + h2) / (h2 * (h2 + h3))
        weights += fourth * np.array([1, -(1 + h1 / h2 + spread), h1 / h2 + spread * (1 + h2 / h3), -spread * h1 / h2])
    return [float(weight) for weight in weights[: len(before) + 1]]
