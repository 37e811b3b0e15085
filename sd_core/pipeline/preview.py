"""A picture of latents while a job runs: by a linear map, or by TAESD if the job has it."""

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from math import isfinite

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.device import Download
from sd_core.errors import ModelError
from sd_core.formats.check import meta_network
from sd_core.models.taesd import TAESD
from sd_core.models.vae import Autoencoder
from sd_core.pipeline.images import PendingImage

LatentToRGB = tuple[tuple[float, ...], ...]

Render = Callable[[Tensor], np.ndarray]
"""Clean latents (1, 4, h, w) -> uint8 (H, W, 3). Blocks until the device is done; any thread may call it."""

LATENT_TO_RGB: LatentToRGB = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)
"""What one unit of each v1 latent channel adds to red, green and blue in [-1, 1]: a least-squares fit that circulates
as "latent2rgb"; other autoencoders need their own."""

METADATA_KEY = "sd_core.latent_to_rgb"


MAX_SIDE = 64
"""Latents of a preview's longer side that TAESD decodes: 512 pixels, a tenth of a guided step's work at that size."""


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


def render_of(vae: Autoencoder, latent_to_rgb: LatentToRGB, *, tiling: bool = False) -> Render:
    """How to render previews of a job whose images this autoencoder decodes."""
    if isinstance(vae, TAESD):
        copy = cache(partial(_copied, vae))  # made at the first preview: most jobs want none
        return lambda latents: decoded(copy(), latents, tiling=tiling)
    return partial(preview, latent_to_rgb=latent_to_rgb)


@torch.inference_mode()
def preview(latents: Tensor, latent_to_rgb: LatentToRGB = LATENT_TO_RGB) -> np.ndarray:
    """Clean latents (1, 4, h, w) -> uint8 (h, w, 3); waits for the device.

    A fifth row of `latent_to_rgb`, if there is one, is added everywhere.
    """
    weights = torch.tensor(latent_to_rgb, device=latents.device)
    # No matrix product: on a GPU the first of a thread takes a workspace, which outweighs this picture by far.
    rgb = (latents[0].float()[..., None] * weights[:4, None, None]).sum(dim=0) + weights[4:].sum(dim=0)
    levels = ((rgb + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return Download(levels).wait().numpy()


@torch.inference_mode()
def decoded(vae: TAESD, latents: Tensor, *, tiling: bool = False) -> np.ndarray:
    """Clean latents (1, 4, h, w) -> uint8 (8 h, 8 w, 3), scaled down to 512 pixels at most; waits for the device."""
    height, width = latents.shape[2:]
    factor = MAX_SIDE / max(height, width)
    if factor < 1:
        size = max(1, round(height * factor)), max(1, round(width * factor))
        latents = F.interpolate(latents, size, mode="area")
    return PendingImage(vae.decode(latents, tiling=tiling)).wait()


def _copied(vae: TAESD) -> TAESD:
    """The decoder with plain layers: those that are laid out for a CPU change when they are used, on one thread only.

    Without a GPU it computes in float32, which every device can.
    """
    weights = {name: each for name, each in vae.state_dict().items() if name.startswith("decoder.")}
    dtype = vae.dtype if any(each.is_cuda for each in weights.values()) else torch.float32
    plain = meta_network(lambda: TAESD(vae.config.channels[0], vae.config.z_channels, has_encoder=False))
    plain.load_state_dict({name: each.to(dtype) for name, each in weights.items()}, assign=True)
    return plain
