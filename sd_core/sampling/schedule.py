"""The noise that a model was trained with, and what describes the noise levels that a sampler visits.

`sigma` is the noise's standard deviation relative to the signal, `timestep` the model's 0..999, `step` a sampler's
count.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

TRAINED_TIMESTEPS = 1000

# The signal's power that replaces zero at the last timestep, as in ComfyUI: every sigma stays finite (at most 4,519).
ZERO_SNR_ALPHA = 4.8973451890853435e-08


@dataclass(frozen=True)
class NoiseSchedule:
    """A model's noise by timestep: `alphas_cumprod` is the signal's power, `sigmas` the noise relative to it."""

    alphas_cumprod: tuple[float, ...]
    sigmas: tuple[float, ...]
    log_sigmas: tuple[float, ...]

    def sigma(self, timestep: float) -> float:
        """Log-linear between the trained timesteps, as in k-diffusion."""
        return float(np.exp(np.interp(timestep, range(len(self.log_sigmas)), self.log_sigmas)))

    def timestep(self, sigma: float) -> float:
        """The inverse of `sigma`: fractional, limited to the trained timesteps."""
        log_sigma = float(np.log(sigma))
        low = min(max(bisect_right(self.log_sigmas, log_sigma) - 1, 0), len(self.log_sigmas) - 2)
        weight = (log_sigma - self.log_sigmas[low]) / (self.log_sigmas[low + 1] - self.log_sigmas[low])
        return low + min(max(weight, 0.0), 1.0)


@cache
def v1_schedule(zero_terminal_snr: bool = False) -> NoiseSchedule:
    """Betas linear in their square root from 0.00085 to 0.012 over 1,000 steps (CompVis' v1-inference.yaml).

    With `zero_terminal_snr`, rescaled so that the last timestep is almost pure noise: Lin et al. 2023, "Common
    Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    betas = np.linspace(0.00085**0.5, 0.012**0.5, TRAINED_TIMESTEPS) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    if zero_terminal_snr:
        signal = np.sqrt(alphas_cumprod)
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        alphas_cumprod = np.maximum(signal**2, ZERO_SNR_ALPHA)
    sigmas = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    return NoiseSchedule(*(tuple(map(float, values)) for values in (alphas_cumprod, sigmas, np.log(sigmas))))


Sigmas = tuple[float, ...]
"""The decreasing noise levels of one image: one for each step, then the level at which it ends."""

SigmasOf = Callable[[NoiseSchedule, int], Sigmas]
"""The noise levels for a number of steps with a model that was trained with the given noise."""

StrengthRule = Callable[[SigmasOf, NoiseSchedule, int, float], Sigmas]
"""The noise levels of image-to-image: those that `SigmasOf` gives for the steps, adapted to a strength in (0, 1]."""


def tail(sigmas_of: SigmasOf, noise_schedule: NoiseSchedule, steps: int, strength: float) -> Sigmas:
    """The last int(steps x strength) steps, at least one (diffusers' rule)."""
    sigmas = sigmas_of(noise_schedule, steps)
    count = len(sigmas) - 1
    return sigmas[-max(1, int(count * strength)) - 1 :]
