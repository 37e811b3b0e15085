"""The two forms of a picture: uint8 (H, W, 3) outside, [-1, 1] (1, 3, H, W) inside."""

import numpy as np
import torch
from torch import Tensor

from sd_core.contracts import NotFinite


def to_pixels(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def to_image(pixels: Tensor) -> np.ndarray:
    """Float (1, 3, H, W) in about [-1, 1] -> uint8 (H, W, 3), clamped and rounded to the nearest level.

    Raises `NotFinite` where the networks' dtype was too narrow for the checkpoint.
    """
    if not torch.isfinite(pixels).all():
        raise NotFinite("the networks' numbers ran out of range; SD_DTYPE=bf16 or fp32 gives them a wider one")
    levels = ((pixels[0].float() + 1) * 127.5).clamp(0, 255).round()
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
