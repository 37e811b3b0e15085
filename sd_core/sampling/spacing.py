"""The ways to space noise levels: every schedule, and the grids of the samplers that have their own.

Each is a function of the model's noise schedule and a number of steps. The last level is 0 unless its docstring says
otherwise; a schedule may have more or fewer levels than steps asked for.
"""

from math import atan, lgamma, tan

import numpy as np

from sd_core.errors import InvalidRequest
from sd_core.sampling.schedule import NoiseSchedule, Sigmas, SigmasOf

# NVIDIA's "Align Your Steps" (Sabour et al. 2024) for Stable Diffusion 1.5, as AUTOMATIC1111 has it.
ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)

# GITS (Chen et al. 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling"), as Forge has it.
GITS = (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029)

BETA_SHAPE = 0.6  # both parameters of the distribution of `beta_sigmas`
BETA_TERMS = 60  # of its power series, which halves with each term
BETA_HALVINGS = 60  # of the interval in which a quantile lies

LINEAR_PART = 0.025  # of sigma_max, which the first half of `linear_quadratic_sigmas` descends by

CONSISTENCY_STEPS = 50  # steps that a latent consistency model was distilled with


def uniform_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Timesteps evenly from the last to 0, not rounded (k-diffusion's `get_sigmas`)."""
    return _at(noise_schedule, np.linspace(_last(noise_schedule), 0, steps))


def sgm_uniform_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Timesteps evenly from the last towards 0, which is left out (Stability's generative-models)."""
    return _at(noise_schedule, np.linspace(_last(noise_schedule), 0, steps, endpoint=False))


def karras_sigmas(noise_schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> Sigmas:
    """Spaced evenly in sigma^(1/rho) between the model's largest and smallest sigma.

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5.
    """
    return (*karras_between(noise_schedule.sigmas[-1], noise_schedule.sigmas[0], steps, rho), 0.0)


def karras_between(largest: float, smallest: float, count: int, rho: float = 7.0) -> Sigmas:
    """`count` levels spaced as in `karras_sigmas`, without the final 0."""
    return tuple(map(float, np.linspace(largest ** (1 / rho), smallest ** (1 / rho), count) ** rho))


def exponential_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Spaced evenly in log sigma (k-diffusion's `get_sigmas_exponential`, and its polyexponential with rho 1)."""
    logs = np.linspace(noise_schedule.log_sigmas[-1], noise_schedule.log_sigmas[0], steps)
    return (*map(float, np.exp(logs)), 0.0)


def simple_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Every n-th trained level, from the largest, rounded down (ComfyUI's `simple`)."""
    sigmas = noise_schedule.sigmas
    return (*(sigmas[-1 - int(step * len(sigmas) / steps)] for step in range(steps)), 0.0)


def ddim_uniform_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Every n-th trained level from timestep 1 up, n rounded down, so there may be more than `steps` (ComfyUI)."""
    stride = max(len(noise_schedule.sigmas) // steps, 1)
    return (*noise_schedule.sigmas[1::stride][::-1], 0.0)


def beta_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Trained timesteps at the quantiles of a beta distribution; equal ones are visited once.

    Source: Lee et al. 2024, "Beta Sampling is All You Need", with alpha = beta = 0.6 as in ComfyUI.
    """
    quantiles = _beta_quantiles(1 - np.linspace(0, 1, steps, endpoint=False))
    # Digits beyond those that the quantiles have would round a tie, such as the median, either way.
    timesteps = np.rint(np.round(quantiles * _last(noise_schedule), 9)).astype(int)
    return (*(noise_schedule.sigmas[timestep] for timestep in dict.fromkeys(timesteps)), 0.0)


def kl_optimal_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Spaced evenly in arctan sigma: Sabour et al. 2024, "Align Your Steps", section 3.1, with ComfyUI's ends."""
    low, high = atan(noise_schedule.sigmas[0]), atan(noise_schedule.sigmas[-1])
    return (*(tan(high + part * (low - high)) for part in np.linspace(0, 1, steps)), 0.0)


def ays_sigmas(_noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """The table `ALIGN_YOUR_STEPS`, log-linear between its levels (AUTOMATIC1111's `align_your_steps`)."""
    return _interpolated(ALIGN_YOUR_STEPS, steps)


def ays_gits_sigmas(_noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """The table `GITS`, log-linear between its levels (Forge's `align_your_steps_GITS`)."""
    return _interpolated(GITS, steps)


def turbo_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Trained timesteps evenly from the last, the first interval being as long as the others (Forge's `turbo`).

    Diffusers calls this trailing spacing; distilled models such as SD-Turbo are sampled with it.
    """
    count = len(noise_schedule.sigmas)
    timesteps = np.clip(np.rint(np.arange(steps, 0, -1) * (count / steps) - 1), 0, count - 1).astype(int)
    return (*(noise_schedule.sigmas[timestep] for timestep in timesteps), 0.0)


def linear_quadratic_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Down by a fortieth of sigma_max in the first half of the steps, linearly, then by a parabola (ComfyUI, Genmo)."""
    largest = noise_schedule.sigmas[-1]
    linear = steps // 2
    if linear == 0:
        return (largest, 0.0)
    curved = steps - linear
    slope = LINEAR_PART / linear
    # The parabola leaves the line with the line's slope and reaches 1 after the remaining steps.
    bend = (1 - LINEAR_PART - slope * curved) / curved**2
    descents = [slope * step for step in range(linear)]
    descents += [LINEAR_PART + slope * step + bend * step**2 for step in range(curved)]
    return (*(largest * (1 - descent) for descent in descents), 0.0)


def leading_sigmas(noise_schedule: NoiseSchedule, steps: int, final_sigma: float) -> Sigmas:
    """At whole timesteps 1 + i x (1000 // steps), largest first, then `final_sigma` (CompVis' DDIM spacing)."""
    stride = len(noise_schedule.sigmas) // steps
    return (*(noise_schedule.sigmas[index * stride + 1] for index in reversed(range(steps))), final_sigma)


def ddpm_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Ends at the clean picture, as diffusers' DDPMScheduler does."""
    return leading_sigmas(noise_schedule, steps, 0.0)


def ddim_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """Ends at the smallest sigma that the model was trained with, as v1.5's own configuration does."""
    return leading_sigmas(noise_schedule, steps, noise_schedule.sigmas[0])


def lcm_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """`steps` of the 50 timesteps that latent consistency models know (diffusers' LCMScheduler).

    Raises `InvalidRequest` if there are fewer than `steps`.
    """
    return _of_consistency_steps(noise_schedule, steps, 1.0, 0.0)


def tcd_sigmas(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
    """As `lcm_sigmas`, but ends at the smallest trained sigma (diffusers' TCDScheduler)."""
    return _of_consistency_steps(noise_schedule, steps, 1.0, noise_schedule.sigmas[0])


def cut_consistency_steps(sigmas_of: SigmasOf, noise_schedule: NoiseSchedule, steps: int, strength: float) -> Sigmas:
    """A `StrengthRule`: the first int(50 x strength) of those timesteps are the ones to choose `steps` from."""
    return _of_consistency_steps(noise_schedule, steps, strength, sigmas_of(noise_schedule, 1)[-1])


def without_next_to_last(sigmas_of: SigmasOf) -> SigmasOf:
    """A schedule of one step more, without its smallest level above the final one.

    AUTOMATIC1111 and ComfyUI do so with solvers of second order, for which that level is too close to 0.
    """

    def discarding(noise_schedule: NoiseSchedule, steps: int) -> Sigmas:
        sigmas = sigmas_of(noise_schedule, steps + 1)
        return (*sigmas[:-2], sigmas[-1])

    return discarding


def _last(noise_schedule: NoiseSchedule) -> int:
    return len(noise_schedule.sigmas) - 1


def _at(noise_schedule: NoiseSchedule, timesteps: np.ndarray) -> Sigmas:
    return (*(noise_schedule.sigma(float(timestep)) for timestep in timesteps), 0.0)


def _interpolated(table: Sigmas, steps: int) -> Sigmas:
    places = np.linspace(0, 1, len(table))
    return (*map(float, np.exp(np.interp(np.linspace(0, 1, steps), places, np.log(table)))), 0.0)


def _of_consistency_steps(noise_schedule: NoiseSchedule, steps: int, strength: float, final_sigma: float) -> Sigmas:
    known = int(CONSISTENCY_STEPS * strength)
    if steps > known:
        cut = f" at strength {strength:g}" if strength < 1 else ""
        raise InvalidRequest(f"steps: {steps} is too many, this sampler has {known} steps at most{cut}")
    stride = len(noise_schedule.sigmas) // CONSISTENCY_STEPS
    chosen = np.floor(np.linspace(0, known, steps, endpoint=False)).astype(int)
    return (*(noise_schedule.sigmas[(known - index) * stride - 1] for index in chosen), final_sigma)


def _beta_quantiles(shares: np.ndarray) -> np.ndarray:
    """The quantiles of the beta distribution with both parameters `BETA_SHAPE`, found by bisection."""
    low, high = np.zeros_like(shares), np.ones_like(shares)
    for _ in range(BETA_HALVINGS):
        middle = (low + high) / 2
        is_below = _beta_share(middle) < shares
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return high


def _beta_share(x: np.ndarray) -> np.ndarray:
    """The regularized incomplete beta function I_x(a, a), by its power series below 1/2 and its symmetry above."""
    a = BETA_SHAPE
    near = np.minimum(x, 1 - x)
    total, coefficient = np.zeros_like(x), 1.0
    for term in range(BETA_TERMS):
        total += coefficient * near**term / (a + term)
        coefficient *= (term + 1 - a) / (term + 1)
    share = near**a * total / np.exp(2 * lgamma(a) - lgamma(2 * a))
    return np.asarray(np.where(x <= 0.5, share, 1 - share))
