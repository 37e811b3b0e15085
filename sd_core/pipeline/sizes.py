"""The sizes of what is generated, from a sent image and the size asked for, or by hires, and the ways to them."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sd_core.errors import InvalidRequest
from sd_core.nested import MAX_SIDE, MIN_SIDE, Hires
from sd_core.request import Request


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


@dataclass(frozen=True)
class Enlargement:
    """From a first pass to its hires pass, in pixels: resized to `covering` (width, height), then cut to `size`."""

    size: tuple[int, int]
    covering: tuple[int, int]

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of the part of `covering` that remains, in multiples of 8."""
        left, top = ((whole - part) // 16 * 8 for whole, part in zip(self.covering, self.size, strict=True))
        return left, top

    def applied(self, image: np.ndarray, resampling: Image.Resampling | None = None) -> np.ndarray:
        """An image uint8 (H, W, 3), or a mask (H, W), at `size`; without `resampling`, resized as `resized` does."""
        larger = image if image.shape[1::-1] == self.covering else _stretched(image, self.covering, resampling)
        (left, top), (width, height) = self.corner, self.size
        return larger[top : top + height, left : left + width]


def enlarged(width: int, height: int, hires: Hires) -> Enlargement:
    """The sizes of the hires pass of a picture of this size.

    A scale is rounded down to multiples of 8. If one side is given, the other keeps the aspect; if both are, the
    picture is made to cover them and its borders are cut. Raises `InvalidRequest` for a side out of a job's limits.
    """
    if hires.width is None and hires.height is None:
        size = covering = _eighths(width * hires.scale), _eighths(height * hires.scale)
    elif hires.width is None or hires.height is None:
        factor = hires.width / width if hires.width is not None else (hires.height or 0) / height
        size = covering = hires.width or _eighths(width * factor), hires.height or _eighths(height * factor)
    else:
        size, factor = (hires.width, hires.height), max(hires.width / width, hires.height / height)
        covering = max(size[0], _eighths(width * factor)), max(size[1], _eighths(height * factor))
    if min(size) < MIN_SIDE or max(size) > MAX_SIDE:
        limits = f"sides are from {MIN_SIDE} to {MAX_SIDE} pixels"
        raise InvalidRequest(f"hires: {width}x{height} would become {size[0]}x{size[1]}, but {limits}")
    return Enlargement(size, covering)


def sizes_of(request: Request) -> list[tuple[int, int]]:
    """Width and height of each run of a request: one, and that of the hires pass."""
    size = request.generated_size
    return [size] if request.hires is None else [size, enlarged(*size, request.hires).size]


def _eighths(side: float) -> int:
    return math.floor(side / 8 + 1e-6) * 8


def resized(
    image: np.ndarray, size: tuple[int, int], mode: str = "stretch", resampling: Image.Resampling | None = None
) -> np.ndarray:
    """An image uint8 (h, w, 3), or a mask (h, w), -> uint8 at `size` (width, height); the same array at its own size.

    `stretch` ignores the aspect; `crop` covers the size and cuts off what is beyond it; `fill` fits into the size and
    continues the edge pixels to its border. Without a `resampling`, images are resized by Lanczos' filter, masks
    without its overshooting.
    """
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    if mode == "stretch":
        return _stretched(image, size, resampling)
    across, down = size
    is_wider = width * down > across * height
    by_height = is_wider if mode == "crop" else not is_wider
    inner = (max(1, width * down // height), down) if by_height else (across, max(1, height * across // width))
    scaled = _stretched(image, inner, resampling)
    left, top = across // 2 - inner[0] // 2, down // 2 - inner[1] // 2
    if mode == "crop":
        return scaled[-top if top < 0 else 0 :, -left if left < 0 else 0 :][:down, :across]
    borders = ((top, down - inner[1] - top), (left, across - inner[0] - left))
    return np.pad(scaled, (*borders, *((0, 0),) * (image.ndim - 2)), mode="edge")


def _stretched(image: np.ndarray, size: tuple[int, int], resampling: Image.Resampling | None = None) -> np.ndarray:
    usual = Image.Resampling.LANCZOS if image.ndim == 3 else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize(size, usual if resampling is None else resampling))
