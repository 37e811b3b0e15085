"""A TAESD with random weights."""

import torch

from sd_core.models.taesd import TAESD


def random_taesd(width: int = 16, *, has_encoder: bool = True) -> TAESD:
    """Convolutions that keep the size of what they receive, and blocks that add half as much."""
    generator = torch.Generator().manual_seed(0)
    taesd = TAESD(width, has_encoder=has_encoder).eval()
    for name, weight in taesd.named_parameters():
        fan_in = weight[0].numel()
        gain = 0.02 * fan_in if name.endswith(".bias") else (0.5 if name.endswith(".conv.4.weight") else 2.0)
        weight.data = torch.randn(weight.shape, generator=generator) * (gain / fan_in) ** 0.5
    return taesd.requires_grad_(False)
