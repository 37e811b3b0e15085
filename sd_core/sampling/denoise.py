"""From a UNet's output to clean latents: the input scale, the timestep and what the model was trained to predict."""

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from sd_core.errors import ModelError
from sd_core.sampling.schedule import NoiseSchedule

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Denoiser:
    """What a model brings to sampling: the noise that it was trained with, and what its UNet predicts.

    Latents are x = x0 + sigma * noise, (n, 4, h, w) float32; sigma > 0.
    Raises `ModelError` if the prediction type is not known.
    """

    schedule: NoiseSchedule
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            known = ", ".join(PREDICTION_TYPES)
            raise ModelError(f"prediction type {self.prediction_type!r} is not supported; known: {known}")

    def scaled(self, x: Tensor, sigma: float) -> Tensor:
        """The UNet's input: x / sqrt(1 + sigma^2), whose variance does not depend on sigma."""
        return x / sqrt(1 + sigma**2)

    def timestep(self, sigma: float) -> float:
        """The fractional timestep, 0..999, at which the model was trained with this noise level."""
        return self.schedule.timestep(sigma)

    def x0(self, x: Tensor, sigma: float, output: Tensor) -> Tensor:
        """The predicted clean latents, float32, from the UNet's `output` (n, 4, h, w) of any dtype.

        "epsilon" predicts the noise (Ho et al. 2020); "v_prediction" predicts v = sqrt(alpha) * noise -
        sqrt(1 - alpha) * x0 with alpha = 1 / (1 + sigma^2) (Salimans & Ho 2022, "Progressive Distillation for Fast
        Sampling of Diffusion Models", appendix D). The formula for v does not subtract two values as large as sigma,
        so it stays exact in float32 for a model with zero terminal SNR.
        """
        x, output = x.float(), output.float()
        if self.prediction_type == "epsilon":
            return x - sigma * output
        return x / (1 + sigma**2) - output * (sigma / sqrt(1 + sigma**2))
