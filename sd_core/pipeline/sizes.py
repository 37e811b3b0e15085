"""The size of an image-to-image result, chosen from the sent image and the size asked for, and the ways to it."""

import math

import numpy as np
from PIL import Image

from sd_core.request import MAX_SIDE, MIN_SIDE


def choose_size(own: tuple[int, int], width: int | None, height: int | None, max_pixels: int) -> tuple[int, int]:
    """The width and height to generate at, from an image of size `own`; `max_pixels` is at least 64 x 64.

    If both sides are given, those. If one is given, the other keeps the image's aspect. If neither is, the image's own
    size, scaled into the limits with its aspect kept. Always multiples of 8 from 64 to 2048, rounded down.
    """
    if width is not None and height is not None:
        return width, height
    own_width, own_height = own
    if width is not None:
        return width, _fit(own_height * width / own_width, max_pixels // width)
    if height is not None:
        return _fit(own_width * height / own_height, max_pixels // height), height
    scale = min(1.0, MAX_SIDE / max(own), math.sqrt(max_pixels / (own_width * own_height)))
    scale = max(scale, min(MIN_SIDE / min(own), MAX_SIDE / max(own)))
    short = _fit(min(own) * scale, max_pixels // MIN_SIDE)
    long = _fit(max(own) * scale, max_pixels // short)
    return (short, long) if own_width <= own_height else (long, short)


def _fit(side: float, limit: int) -> int:
    """`side` rounded down to a multiple of 8 from 64 to 2048 and at most `limit`."""
    rounded = math.floor(min(side, limit, MAX_SIDE) / 8 + 1e-6) * 8
    return max(MIN_SIDE, rounded)


def resized(image: np.ndarray, size: tuple[int, int], mode: str = "stretch") -> np.ndarray:
    """An image uint8 (h, w, 3), or a mask (h, w), -> uint8 at `size` (width, height); the same array at its own size.

    `stretch` ignores the aspect; `crop` covers the size and cuts off what is beyond it; `fill` fits into the size and
    continues the edge pixels to its border. Images are resized by Lanczos' filter, masks without its overshooting.
    """
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    if mode == "stretch":
        return _stretched(image, size)
    across, down = size
    is_wider = width * down > across * height
    by_height = is_wider if mode == "crop" else not is_wider
    inner = (max(1, width * down // height), down) if by_height else (across, max(1, height * across // width))
    scaled = _stretched(image, inner)
    left, top = across // 2 - inner[0] // 2, down // 2 - inner[1] // 2
    if mode == "crop":
        return scaled[-top if top < 0 else 0 :, -left if left < 0 else 0 :][:down, :across]
    borders = ((top, down - inner[1] - top), (left, across - inner[0] - left))
    return np.pad(scaled, (*borders, *((0, 0),) * (image.ndim - 2)), mode="edge")


def _stretched(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resampling = Image.Resampling.LANCZOS if image.ndim == 3 else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize(size, resampling))
