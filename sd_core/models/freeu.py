"""FreeU: the backbone's features weigh more against what skip connections bring."""

import torch
from torch import Tensor

from sd_core.models.given import FreeU

BLOCKS = 2
"""The coarsest levels, on whose way up features are reweighed, each by its own pair of factors."""


def reweighed(x: Tensor, skip: Tensor, level: int, freeu: FreeU) -> tuple[Tensor, Tensor]:
    """Features and skip connection (R, C, H, W) of a level, counted from the coarsest, before they are joined.

    Half of the channels are scaled by b, and the lowest frequencies of the skip connection by s.
    Source: Si et al. 2023, "FreeU: Free Lunch in Diffusion U-Net", as in diffusers' `apply_freeu`.
    """
    if level >= BLOCKS:
        return x, skip
    backbone, low = (freeu.scales[:, column, None, None, None] for column in (level, BLOCKS + level))
    half = x.shape[1] // 2
    some = x[freeu.rows]
    some = torch.cat([some[:, :half] * backbone.to(x.dtype), some[:, half:]], dim=1)
    filtered = _low_scaled(skip[freeu.rows].float(), low).to(skip.dtype)
    return x.index_copy(0, freeu.rows, some), skip.index_copy(0, freeu.rows, filtered)


def _low_scaled(x: Tensor, scale: Tensor) -> Tensor:  # (k, C, H, W), (k, 1, 1, 1) float32
    """x with its lowest frequencies, two by two around the middle of the shifted spectrum, scaled."""
    height, width = x.shape[2:]
    spectrum = torch.fft.fftshift(torch.fft.fftn(x, dim=(-2, -1)), dim=(-2, -1))
    rows, columns = (slice(max(0, side // 2 - 1), side // 2 + 1) for side in (height, width))
    spectrum[..., rows, columns] *= scale
    shifted = torch.fft.ifftshift(spectrum, dim=(-2, -1))
    out: Tensor = torch.fft.ifftn(shifted, dim=(-2, -1)).real
    return out
