"""Upscalers, run tile by tile."""

from collections.abc import Generator
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from sd_core.models.rrdbnet import RRDBNet
from sd_core.models.tiles import Mosaic
from sd_core.pipeline.images import PendingImage, to_pixels
from sd_core.work import HostTask, UpscaleWork

TILE, OVERLAP = 192, 16
"""Pixels on the side of a tile, so that it delays a UNet step by about one step; and in a seam."""


def upscaled(image: np.ndarray, network: RRDBNet, device: torch.device) -> Generator[Any, Any, np.ndarray]:
    """uint8 (H, W, 3) -> uint8, `network.scale` times as wide and as high; asks for each tile by itself."""
    pixels = (to_pixels(image, device) + 1) / 2
    mosaic = Mosaic(pixels.shape[2:], TILE, OVERLAP, Fraction(network.scale))
    for place in mosaic.places:
        mosaic.add(place, (yield UpscaleWork(network, pixels[:, :, *place])))
    whole: np.ndarray = yield HostTask(PendingImage(2 * mosaic.joined() - 1).wait)
    return whole
