"""The size of an image-to-image result, chosen from the sent image and the size asked for, and the resizing to it."""

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


def resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """RGB -> uint8 (height, width, 3) at `size` (width, height)."""
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.array(image, dtype=np.uint8)
