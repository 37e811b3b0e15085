"""Samplers for consistency models: each step jumps to the clean latents and adds noise again."""

from itertools import pairwise
from math import floor, sqrt

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import NoiseSchedule, Sigmas
from sd_core.work import Call, Sampling


def lcm(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Luo et al. 2023, "Latent Consistency Models", algorithm 3 (diffusers' LCMScheduler).

    Its boundary conditions would mix in x with a weight of at most 7e-6, and are left out as in ComfyUI.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x = (yield Call(x, sigma, step)).x0
        if sigma_next > 0:
            x = x + noise.draw() * sigma_next
    return x


def tcd(x: Tensor, sigmas: Sigmas, noise: NoiseSource, noise_schedule: NoiseSchedule, eta: float = 0.3) -> Sampling:
    """Zheng et al. 2024, "Trajectory Consistency Distillation", algorithm 4 (diffusers' TCDScheduler).

    A step ends at a share 1 - `eta` (the paper's gamma) of the next timestep, and noise leads from there to the next
    level. The last step adds none.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(x, sigma, step)).x0
        timestep = floor((1 - eta) * round(noise_schedule.timestep(sigma_next)))
        down = min(noise_schedule.sigmas[timestep], sigma_next)
        x = x0 + (x - x0) * (down / sigma)
        if eta > 0 and step + 2 < len(sigmas):
            x = x + noise.draw() * sqrt(sigma_next**2 - down**2)
    return x / sqrt(1 + sigmas[-1] ** 2)
