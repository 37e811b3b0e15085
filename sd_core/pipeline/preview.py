"""A small picture straight from latents, without the VAE."""

import json
from collections.abc import Mapping
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from sd_core.device import Download
from sd_core.errors import ModelError

LatentToRGB = tuple[tuple[float, ...], ...]

LATENT_TO_RGB: LatentToRGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)
"""What one unit of each v1 latent channel adds to red, green and blue in [-1, 1]: a least-squares fit that circulates
as "latent2rgb"; other autoencoders need their own."""

METADATA_KEY = "sd_core.latent_to_rgb"


def latent_to_rgb_of(metadata: Mapping[str, str]) -> LatentToRGB:
    """The checkpoint's own map, JSON of 4 or 5 rows of 3 numbers, else v1's. Raises `ModelError`."""
    if METADATA_KEY not in metadata:
        return LATENT_TO_RGB
    try:
        rows = tuple(tuple(float(weight) for weight in row) for row in json.loads(metadata[METADATA_KEY]))
    except (TypeError, ValueError):
        rows = ()
    if len(rows) not in (4, 5) or any(len(row) != 3 or not all(map(isfinite, row)) for row in rows):
        raise ModelError(f"metadata {METADATA_KEY} is not JSON of 4 or 5 rows of 3 numbers")
    return rows


def preview(latents: Tensor, latent_to_rgb: LatentToRGB = LATENT_TO_RGB) -> np.ndarray:
    """Clean latents (1, 4, h, w) -> uint8 (h, w, 3); waits for the device.

    A fifth row of `latent_to_rgb`, where there is one, is added everywhere.
    """
    weights = torch.tensor(latent_to_rgb, device=latents.device)
    # No matrix product: on a GPU the first of a thread takes a workspace, which outweighs this picture by far.
    rgb = (latents[0].float()[..., None] * weights[:4, None, None]).sum(dim=0) + weights[4:].sum(dim=0)
    levels = ((rgb + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return Download(levels).wait().numpy()
