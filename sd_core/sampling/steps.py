"""Parts of steps that several samplers share."""

from dataclasses import dataclass
from math import inf, sqrt

from torch import Tensor

from sd_core.sampling.noise import NoiseSource

MAX_CHURN = sqrt(2) - 1  # the largest share by which a step raises its noise level


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """The level to step down to, and the deviation of the fresh noise that leads from there to sigma_next.

    `eta` is the share of that noise; 0 steps to sigma_next itself (k-diffusion's `get_ancestral_step`).
    """
    up = min(sigma_next, eta * sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return sqrt(sigma_next**2 - up**2), up


@dataclass(frozen=True)
class Churn:
    """Raises the noise level before a step: Karras et al. 2022, algorithm 2, lines 4 to 6.

    With `s_churn` above 0 it draws at every step, as k-diffusion does, even outside `s_tmin` to `s_tmax`.
    """

    noise: NoiseSource
    steps: int
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = inf
    s_noise: float = 1.0

    def raised(self, x: Tensor, sigma: float) -> tuple[Tensor, float]:
        """x (1, 4, h, w) of level sigma -> x of the level to step from, and that level."""
        if self.s_churn == 0:
            return x, sigma
        drawn = self.noise.draw()
        if not self.s_tmin <= sigma <= self.s_tmax:
            return x, sigma
        raised = sigma * (1 + min(self.s_churn / self.steps, MAX_CHURN))
        return x + drawn * (self.s_noise * sqrt(raised**2 - sigma**2)), raised
