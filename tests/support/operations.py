"""The floating-point operations of a UNet step, counted by shape."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sd_core.models.unet import UNet, UNetConfig

ROWS = 2  # one image with guidance
TOKENS = 77


def count_operations(config: UNetConfig, side: int) -> int:
    """Floating-point operations of one call of the UNet; a multiplication and its addition are two."""
    with torch.device("meta"):
        unet = UNet(config)
    latents, timesteps, context = unet_inputs(config, side, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        unet(latents, timesteps, unet.given(context))
    counted: int = counter.get_total_flops()
    return counted


def unet_inputs(config: UNetConfig, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (ROWS, C, side, side), timesteps (ROWS,) and context (ROWS, TOKENS, D) of one call with guidance."""
    latents = torch.zeros(ROWS, config.in_channels, side, side, device=device)
    context = torch.zeros(ROWS, TOKENS, config.context_dim, device=device)
    return latents, torch.full((ROWS,), 500.0, device=device), context
