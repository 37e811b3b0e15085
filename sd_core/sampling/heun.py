"""Heun's method, Heun++ and Restart: several calls a step, which correct its direction."""

from collections.abc import Iterator
from itertools import pairwise
from math import sqrt

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.sampling.spacing import karras_between
from sd_core.sampling.steps import Churn
from sd_core.work import Call, Sampling

RESTART_BELOW, RESTART_FROM = 0.1, 2.0  # the levels that a restart climbs from and to
FEW_RESTARTS, MANY_RESTARTS = 20, 36  # steps from which one restart is done, and two
SHORT_RESTART = 9  # steps of the only restart


def heun(x: Tensor, sigmas: Sigmas, noise: NoiseSource, **churning: float) -> Sampling:
    """Karras et al. 2022, algorithm 2: two calls a step, but one for a step to sigma 0."""
    churn = Churn(noise, len(sigmas) - 1, **churning)
    for step, (level, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn.raised(x, level)
        x = yield from _heun_step(x, sigma, sigma_next, step)
    return x


def heunpp2(x: Tensor, sigmas: Sigmas, noise: NoiseSource, **churning: float) -> Sampling:
    """Heun++: the slopes at this level and the next two, weighted by their sigmas; fewer calls in the last two steps.

    Source: sd-webui-samplers-scheduler, as in ComfyUI's and Forge's `heunpp2`.
    """
    churn = Churn(noise, len(sigmas) - 1, **churning)
    for step, (level, sigma_next) in enumerate(pairwise(sigmas)):
        x, sigma = churn.raised(x, level)
        x0 = (yield Call(x, sigma, step)).x0
        slope = (x - x0) / sigma
        mean, ahead = slope, x0 + slope * sigma_next
        # The last level has no weight. The weight of each other is its sigma over the largest one times their count.
        looked_at = sigmas[step + 1 : step + 3] if step + 3 < len(sigmas) else sigmas[step + 1 : -1]
        for call, (there, beyond) in enumerate(zip(looked_at, sigmas[step + 2 :], strict=False), start=1):
            ahead_x0 = (yield Call(ahead, there, step, call)).x0
            ahead_slope = (ahead - ahead_x0) / there
            mean = mean + (ahead_slope - slope) * (there / ((len(looked_at) + 1) * sigmas[0]))
            ahead = ahead_x0 + ahead_slope * beyond
        x = x0 + slope * sigma_next + (mean - slope) * (sigma_next - sigma)
    return x


def restart(x: Tensor, sigmas: Sigmas, noise: NoiseSource, s_noise: float = 1.0) -> Sampling:
    """Heun down to a low level, then noise up again and down once more, once or twice if there are 20 steps or more.

    Source: Xu et al. 2023, "Restart Sampling for Improving Generative Processes", algorithm 1, with AUTOMATIC1111's
    choice of levels. Of `sigmas`, only the ends and the number matter if there are restarts.
    """
    last = sigmas[0]
    for step, (sigma, sigma_next) in enumerate(restart_steps(sigmas)):
        if last < sigma:
            x = x + noise.draw() * (s_noise * sqrt(sigma**2 - last**2))
        x = yield from _heun_step(x, sigma, sigma_next, step)
        last = sigma_next
    return x


def restart_steps(sigmas: Sigmas) -> list[tuple[float, float]]:
    """The steps of `restart` in their order, from one level to another; those of its restarts are among them."""
    steps = len(sigmas) - 1
    if steps < FEW_RESTARTS:
        return list(pairwise(sigmas))
    length, times = (steps // 4, 2) if steps >= MANY_RESTARTS else (SHORT_RESTART, 1)
    levels = (*karras_between(sigmas[0], sigmas[-2], steps - length * times), 0.0)
    low, high = (min(range(len(levels)), key=lambda i: abs(levels[i] - to)) for to in (RESTART_BELOW, RESTART_FROM))
    return list(_with_restarts(levels, low, high, length, times))


def restart_calls(sigmas: Sigmas) -> int:
    return sum(2 if sigma_next > 0 else 1 for _, sigma_next in restart_steps(sigmas))


def _with_restarts(levels: Sigmas, low: int, high: int, length: int, times: int) -> Iterator[tuple[float, float]]:
    for index, step in enumerate(pairwise(levels), start=1):
        yield step
        if high < index == low:
            yield from times * list(pairwise(karras_between(levels[high], levels[low], length + 1)))


def _heun_step(x: Tensor, sigma: float, sigma_next: float, step: int) -> Sampling:
    x0 = (yield Call(x, sigma, step)).x0
    if sigma_next == 0:
        return x0
    slope = (x - x0) / sigma
    euler_x = x0 + slope * sigma_next
    slope_next = (euler_x - (yield Call(euler_x, sigma_next, step, call=1)).x0) / sigma_next
    return x + (slope + slope_next) / 2 * (sigma_next - sigma)
