"""DPM-Solver++."""

from itertools import pairwise
from math import expm1, log

from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Call, Sampling


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
