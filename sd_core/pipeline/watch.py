"""Telling of a sampler's steps, whatever the sampler."""

from collections.abc import Callable
from functools import partial
from math import sqrt

from torch import Tensor

from sd_core.work import Sampling, UNetCall

Tell = Callable[[int, Callable[[], Tensor]], None]
"""Told how many steps are done, and how to get the clean latents (1, 4, h, w) that the last of them foresees."""


def watched(sampling: Sampling, tell: Tell) -> Sampling:
    """The same sampler, telling of each step once it is done; a step of some samplers is two calls."""
    call = next(sampling)
    while True:
        eps = yield call
        foresee = partial(_clean, call, eps)
        try:
            following = sampling.send(eps)
        except StopIteration as stop:
            tell(call.step + 1, foresee)
            latents: Tensor = stop.value
            return latents
        if following.step != call.step:
            tell(call.step + 1, foresee)
        call = following


def _clean(call: UNetCall, eps: Tensor) -> Tensor:
    return call.latents * sqrt(1 + call.sigma**2) - call.sigma * eps
