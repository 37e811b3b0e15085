"""Samplers that diffusers does not have, or has with another meaning: k-diffusion's own, and published formulas.

Each is called as `sample(model, x, sigmas)`, `model(x, sigma)` being guided clean latents. Random numbers come from
torch's global generator.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import exp, expm1, log, sqrt
from typing import Any

import torch
from torch import Tensor

from tests.support.k_diffusion import k_diffusion

Model = Callable[[Tensor, Tensor], Tensor]
Sample = Callable[..., Tensor]

K_DIFFUSION: dict[str, Sample] = {
    "euler": k_diffusion.sample_euler,
    "euler_a": k_diffusion.sample_euler_ancestral,
    "heun": k_diffusion.sample_heun,
    "dpm2": k_diffusion.sample_dpm_2,
    "dpm2_a": k_diffusion.sample_dpm_2_ancestral,
    "lms": k_diffusion.sample_lms,
    "dpmpp_2s_a": k_diffusion.sample_dpmpp_2s_ancestral,
    "dpmpp_2m": k_diffusion.sample_dpmpp_2m,
    "dpmpp_sde": k_diffusion.sample_dpmpp_sde,
    "dpmpp_2m_sde": k_diffusion.sample_dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": partial(k_diffusion.sample_dpmpp_2m_sde, solver_type="heun"),
    "dpmpp_3m_sde": k_diffusion.sample_dpmpp_3m_sde,
}
BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")


def heunpp2(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """The three slopes of a step, weighted 1 - w2 - w3, w2 = sigma_2 / (3 sigma_max), w3 = sigma_3 / (3 sigma_max)."""
    end = len(sigmas) - 1
    for i in range(end):
        levels = [sigmas[i], *sigmas[i + 1 : min(i + 3, end)]]
        point, slopes = x, []
        for place, level in enumerate(levels):
            slopes.append((point - model(point, level)) / level)
            if place + 1 < len(levels):
                point = point + slopes[-1] * (levels[place + 1] - level)
        weights = [level / (len(levels) * sigmas[0]) for level in levels[1:]]
        mean = (1 - sum(weights)) * slopes[0]
        for weight, slope in zip(weights, slopes[1:], strict=True):
            mean = mean + weight * slope
        x = x + mean * (sigmas[i + 1] - sigmas[i])
    return x


def ipndm(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """Adams and Bashforth's weights for equal steps; to sigma 0, the clean latents."""
    d: list[Tensor] = []
    for i in range(len(sigmas) - 1):
        x0 = model(x, sigmas[i])
        d.append((x - x0) / sigmas[i])
        h = sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = x0
        elif len(d) == 1:
            x = x + h * d[-1]
        elif len(d) == 2:
            x = x + h / 2 * (3 * d[-1] - d[-2])
        elif len(d) == 3:
            x = x + h / 12 * (23 * d[-1] - 16 * d[-2] + 5 * d[-3])
        else:
            x = x + h / 24 * (55 * d[-1] - 59 * d[-2] + 37 * d[-3] - 9 * d[-4])
    return x


def ipndm_v(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """diff-sampler's published weights, in differences of the slopes d0 (newest) to d3.

    With h the step and h1, h2, h3 the last ones, a step is h times d0 + h / (2 h1) (d0 - d1) + a (d0 - d1 - h1 / h2
    (d1 - d2)) and, with three slopes before, b times what the last lines say.
    """
    d: list[Tensor] = []
    steps: list[float] = []
    for i in range(len(sigmas) - 1):
        x0 = model(x, sigmas[i])
        d.insert(0, (x - x0) / sigmas[i])
        h = float(sigmas[i + 1] - sigmas[i])
        if sigmas[i + 1] == 0:
            return x0
        change = d[0]
        if len(d) > 1:
            h1 = steps[0]
            change = change + h / (2 * h1) * (d[0] - d[1])
        if len(d) > 2:
            h2 = steps[1]
            bend = (d[0] - d[1]) - h1 / h2 * (d[1] - d[2])
            a = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
            change = change + a * bend
        if len(d) > 3:
            h3 = steps[2]
            share = h1 * (h1 + h2) / (h2 * (h2 + h3))
            twist = bend - share * (d[1] - (1 + h2 / h3) * d[2] + h1 / h2 * d[3])
            b = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
            b *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
            change = change + b * twist
        x = x + h * change
        steps.insert(0, h)
    return x


def restart(model: Model, x: Tensor, sigmas: Tensor) -> Tensor:
    """Heun's steps along the levels of a path that climbs again after it has reached the level nearest 0.1."""
    count = len(sigmas) - 1
    length, times = (count // 4, 2) if count >= 36 else (9, 1)
    path = sigmas
    if count >= 20:
        base = k_diffusion.get_sigmas_karras(count - length * times, sigmas[-2].item(), sigmas[0].item())
        low, high = int((base - 0.1).abs().argmin()), int((base - 2).abs().argmin())
        again = k_diffusion.get_sigmas_karras(length + 1, base[low].item(), base[high].item())[:-1]
        path = torch.cat([base[: low + 1], *[again] * times, base[low + 1 :]]) if high < low else base
    for sigma, sigma_next in pairwise(path):
        if sigma_next > sigma:
            x = x + torch.randn_like(x) * (sigma_next**2 - sigma**2) ** 0.5
        elif sigma_next < sigma:
            x = k_diffusion.sample_heun(_without_draws(model), x, torch.stack([sigma, sigma_next]), disable=True)
    return x


def _without_draws(model: Model) -> Model:
    """k-diffusion's Heun draws numbers at each step that it has no use for; they must not count."""
    state = torch.get_rng_state()

    def answering(x: Tensor, sigma: Tensor) -> Tensor:
        torch.set_rng_state(state)
        return model(x, sigma)

    return answering


def euler_cfg_pp(model: Model, x: Tensor, sigmas: Tensor, uncond: Model, eta: float = 0.0) -> Tensor:
    """ComfyUI's formula: the guided clean latents plus the unguided noise of the level below, then fresh noise."""
    for i in range(len(sigmas) - 1):
        s, t = float(sigmas[i]), float(sigmas[i + 1])
        x0, x0_uncond = model(x, sigmas[i]), uncond(x, sigmas[i])
        up = min(t, eta * sqrt(t**2 * (s**2 - t**2) / s**2))
        x = x0 + sqrt(t**2 - up**2) * (x - x0_uncond) / s
        if up > 0:
            x = x + up * torch.randn_like(x)
    return x


def dpmpp_2m_cfg_pp(model: Model, x: Tensor, sigmas: Tensor, uncond: Model) -> Tensor:
    """ComfyUI's formula: x0 - e^-h u + e^-h x - (e^-h - 1) / (2 r) (x0 - u_last), r = h_last / h."""
    u_last, h_last = None, 0.0
    for i in range(len(sigmas) - 1):
        x0, u = model(x, sigmas[i]), uncond(x, sigmas[i])
        if sigmas[i + 1] == 0:
            return x0
        h = log(float(sigmas[i] / sigmas[i + 1]))
        x = x0 - exp(-h) * u + exp(-h) * x
        if u_last is not None:
            x = x - expm1(-h) * h / (2 * h_last) * (x0 - u_last)
        u_last, h_last = u, h
    return x


WRITTEN_OUT: dict[str, Sample] = {"heunpp2": heunpp2, "ipndm": ipndm, "ipndm_v": ipndm_v, "restart": restart}
WITH_UNCOND: dict[str, Sample] = {
    "euler_cfg_pp": euler_cfg_pp,
    "euler_a_cfg_pp": partial(euler_cfg_pp, eta=1.0),
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
}


def noise_sampler(seed: int, x: Tensor, span: tuple[float, float]) -> Any:
    """k-diffusion's Brownian path, by torchsde, over the levels of `span`."""
    low, high = torch.tensor(span)
    return k_diffusion.BrownianTreeNoiseSampler(x, low, high, seed=seed)
