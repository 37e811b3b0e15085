"""UniPC: a predictor and a corrector that share one call a step."""

from itertools import pairwise
from math import expm1, log

import numpy as np
from torch import Tensor

from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas
from sd_core.work import Call, Sampling


def unipc(x: Tensor, sigmas: Sigmas, noise: NoiseSource) -> Sampling:
    """Zhao et al. 2023, "UniPC", algorithms 5 and 6 with B2(h), order 2 and the prediction of clean latents.

    Source: diffusers' UniPCMultistepScheduler. lambda = -log sigma and h is its increase over a step. After a call, the
    step that led to it is done again with what it answered; then the next step is predicted.
    """
    start, predicted = x, x  # of the last step
    past: list[tuple[Tensor, float]] = []  # clean latents and the step that followed them, newest first
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Call(predicted, sigma, step)).x0
        start = predicted if step == 0 else _corrected(start, x0, past, sigma / sigmas[step - 1])
        if sigma_next == 0:
            return x0
        h = log(sigma / sigma_next)
        predicted = _first_order(start, x0, h, sigma_next / sigma)
        if past and step + 2 < len(sigmas):
            predicted = predicted - expm1(-h) / 2 * (x0 - past[0][0]) * (h / past[0][1])
        past = [(x0, h), *past[:1]]
    return predicted


def _first_order(x: Tensor, x0: Tensor, h: float, ratio: float) -> Tensor:
    return ratio * x - expm1(-h) * x0


def _corrected(x: Tensor, x0_there: Tensor, past: list[tuple[Tensor, float]], ratio: float) -> Tensor:
    """The step from x once more, now that the clean latents at its end are known."""
    (x0, h), *older = past
    new = x0_there - x0
    if not older:
        return _first_order(x, x0, h, ratio) - expm1(-h) / 2 * new
    ((older_x0, older_h),) = older
    back = -older_h / h
    phi_1 = expm1(-h) / -h - 1
    phi_2 = phi_1 / -h - 0.5
    # Solved so that slopes and curvatures over the step are integrated exactly.
    matrix, right = np.array([[1, 1], [back, 1]]), np.array([phi_1, 2 * phi_2])
    old_weight, new_weight = map(float, np.linalg.solve(matrix, right))
    return _first_order(x, x0, h, ratio) - old_weight * (older_x0 - x0) / back - new_weight * new
