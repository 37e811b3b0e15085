"""The order of convergence of every deterministic sampler, between two positive sigmas on log-uniform grids."""

from math import log2

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_core.sampling.noise import CPUNoise
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import Sigmas
from sd_core.sampling.solver import Solver
from sd_core.work import Call, Prediction
from tests.support.drive import drive

SHAPE = (1, 4, 1, 1)
START, END = 10.0, 0.5

# The first step of a multistep method is Euler's, whose error over one step is of second order: so is the whole then.
ORDERS = {
    "ddim": 1,
    "plms": 2,
    "lms": 2,
    "euler": 1,
    "heun": 2,
    "heunpp2": 1,
    "dpm2": 2,
    "dpmpp_2m": 2,
    "unipc": 2,
    "deis": 2,
    "ipndm": 2,
    "ipndm_v": 2,
    "restart": 2,
    "euler_cfg_pp": 1,
    "dpmpp_2m_cfg_pp": 2,
    # Without their noise, those of the probability flow.
    "euler_a": 1,
    "dpm2_a": 2,
    "dpmpp_2s_a": 2,
    "dpmpp_sde": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_2m_sde_heun": 2,
    "dpmpp_3m_sde": 2,
    "euler_a_cfg_pp": 1,
}


def test_every_sampler_that_can_be_deterministic_has_an_order() -> None:
    assert set(SOLVERS) - set(ORDERS) == {"ddpm", "lcm", "tcd"}, "these add noise, or jump between known timesteps"


def exact(sigma: float) -> Tensor:
    """The path through latents that are normal with these deviations: x grows as sqrt(deviation^2 + sigma^2)."""
    deviations = torch.tensor([0.5, 0.8, 1.0, 1.5], dtype=torch.float64)[None, :, None, None]
    return (deviations**2 + sigma**2).sqrt()


def denoised(call: Call) -> Prediction:
    deviations = torch.tensor([0.5, 0.8, 1.0, 1.5], dtype=torch.float64)[None, :, None, None]
    x0 = call.x * (deviations**2 / (deviations**2 + call.sigma**2))
    return Prediction(x0, x0)


def error(solver: Solver, steps: int) -> float:
    sigmas: Sigmas = tuple(np.geomspace(START, END, steps + 1).tolist())
    options = {"eta": 0.0} if "eta" in solver.options else {}
    end, _ = drive(solver.run(exact(START), sigmas, CPUNoise(1, SHAPE, torch.device("cpu")), options), denoised)
    scale = (1 + END**2) ** 0.5 if solver.variance_preserving else 1.0
    return float((end * scale - exact(END)).abs().max())


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_halving_the_steps_divides_the_error_by_two_to_the_order(name: str, order: int) -> None:
    # Restarts begin at 20 steps, so that sampler is compared below.
    coarse = 8 if name == "restart" else 64
    ratio = error(SOLVERS[name], coarse) / error(SOLVERS[name], 2 * coarse)
    assert log2(ratio) > order - 0.2
