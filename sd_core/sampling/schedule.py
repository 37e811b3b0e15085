"""The noise that the model was trained with, and the noise levels that a sampler visits.

`sigma` is the noise's deviation in units of the signal, `timestep` the model's 0..999, `step` a sampler's count.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

import numpy as np

TRAINED_TIMESTEPS = 1000


@dataclass(frozen=True)
class NoiseSchedule:
    """v1's schedule, indexed by timestep: `alphas_cumprod` is the signal's power, `sigmas` the noise to it."""

    alphas_cumprod: tuple[float, ...]
    sigmas: tuple[float, ...]
    log_sigmas: tuple[float, ...]

    def sigma(self, timestep: float) -> float:
        """Log-linear between the trained timesteps, as in k-diffusion."""
        return float(np.exp(np.interp(timestep, range(len(self.log_sigmas)), self.log_sigmas)))

    def timestep(self, sigma: float) -> float:
        """The inverse of `sigma`: fractional, within 0..999."""
        log_sigma = float(np.log(sigma))
        low = min(max(bisect_right(self.log_sigmas, log_sigma) - 1, 0), len(self.log_sigmas) - 2)
        weight = (log_sigma - self.log_sigmas[low]) / (self.log_sigmas[low + 1] - self.log_sigmas[low])
        return low + min(max(weight, 0.0), 1.0)


@cache
def v1_schedule() -> NoiseSchedule:
    """Betas linear in their square root from 0.00085 to 0.012 over 1,000 steps (CompVis' v1-inference.yaml)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAINED_TIMESTEPS) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    sigmas = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    return NoiseSchedule(*(tuple(map(float, values)) for values in (alphas_cumprod, sigmas, np.log(sigmas))))


Sigmas = tuple[float, ...]
"""The noise levels of one picture, falling: one a step and the one where it ends."""


def tail(sigmas: Sigmas, strength: float) -> Sigmas:
    """The last int(steps x strength) steps, at least one: what image-to-image goes through."""
    steps = len(sigmas) - 1
    kept = max(1, min(steps, int(steps * strength)))
    return sigmas[-kept - 1 :]


def uniform_sigmas(steps: int) -> Sigmas:
    """Timesteps evenly from 999 to 0, not rounded, then sigma 0 (k-diffusion's `get_sigmas`)."""
    schedule = v1_schedule()
    timesteps = np.linspace(TRAINED_TIMESTEPS - 1, 0, steps)
    return (*(schedule.sigma(float(t)) for t in timesteps), 0.0)


def karras_sigmas(steps: int, rho: float = 7.0) -> Sigmas:
    """Spaced evenly in sigma^(1/rho) between the model's largest and smallest sigma, then 0.

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5.
    """
    schedule = v1_schedule()
    ramp = np.linspace(schedule.sigmas[-1] ** (1 / rho), schedule.sigmas[0] ** (1 / rho), steps) ** rho
    return (*map(float, ramp), 0.0)


def leading_sigmas(steps: int, final_sigma: float) -> Sigmas:
    """At whole timesteps 1 + i x (1000 // steps), largest first, then `final_sigma` (CompVis' DDIM spacing)."""
    schedule = v1_schedule()
    stride = TRAINED_TIMESTEPS // steps
    return (*(schedule.sigmas[index * stride + 1] for index in reversed(range(steps))), final_sigma)


def ddpm_sigmas(steps: int) -> Sigmas:
    """Ends in the clean picture, as diffusers' DDPMScheduler does."""
    return leading_sigmas(steps, 0.0)


def ddim_sigmas(steps: int) -> Sigmas:
    """Ends at the least noise that the model was trained with, as v1.5's own configuration does."""
    return leading_sigmas(steps, v1_schedule().sigmas[0])
