"""Masks of an image, uint8 (H, W): 255 is repainted, 0 is kept. The formulas are AUTOMATIC1111's."""

import numpy as np
from PIL import Image, ImageFilter

from sd_core.nested import Outpaint

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two lie outside."""

SHADES = 255
TAPS_SUM = 256

# Radius in pixels and repetitions of the blurs that spread the kept part into the masked one, the coarsest first.
SPREADS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))

BLOCK_PIXELS = 1 << 16  # blurred at a time, so that the sums stay in the processor's cache


def grown(image: np.ndarray, mask: np.ndarray, by: Outpaint) -> tuple[np.ndarray, np.ndarray]:
    """The image with a border that continues its edge pixels, and the mask with a white border."""
    sides = ((by.top, by.bottom), (by.left, by.right))
    return np.pad(image, (*sides, (0, 0)), mode="edge"), np.pad(mask, sides, constant_values=SHADES)


def blurred(mask: np.ndarray, sigma_x: int, sigma_y: int) -> np.ndarray:
    """A Gaussian blur, horizontally and then vertically, equal to OpenCV's `GaussianBlur` of 8-bit images bit for bit.

    Beyond its border the mask is mirrored about its outermost pixels; each pass is rounded to 8 bits.
    """
    return _blurred_down(_blurred_down(mask.T, sigma_x).T, sigma_y)


def _blurred_down(mask: np.ndarray, sigma: int) -> np.ndarray:
    """Blur each column."""
    if not sigma or not mask.any():
        return mask
    taps = _taps(sigma)
    reach, (height, width) = len(taps) // 2, mask.shape
    result = np.empty(mask.shape, np.uint8)
    columns = max(1, BLOCK_PIXELS // height)
    for first in range(0, width, columns):
        part = np.ascontiguousarray(mask[:, first : first + columns], dtype=np.uint16)
        padded = np.pad(part, ((reach, reach), (0, 0)), mode="reflect" if height > 1 else "edge")
        total = np.full(part.shape, TAPS_SUM // 2, np.uint16)
        for row, tap in enumerate(taps):
            total += np.uint16(tap) * padded[row : row + height]
        result[:, first : first + columns] = total // TAPS_SUM
    return result


def _taps(sigma: int) -> list[int]:
    """The weights of the blur in 256ths: what rounding takes from one is added to the next, the middle has the rest."""
    reach = int(2.5 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    rest, half = 0.0, []
    for weight in weights[:reach] / weights.sum() * TAPS_SUM:
        half.append(round(weight + rest))
        rest += float(weight) - half[-1]
    return [*half, TAPS_SUM - 2 * sum(half), *reversed(half)]


def mixed(kept: np.ndarray, generated: np.ndarray, opaque: np.ndarray) -> np.ndarray:
    """`generated` over `kept`, uint8 (H, W, 3); where `opaque` (H, W) is 0 or 255, exactly one of them."""
    weight = opaque.astype(np.uint16)[..., None]
    return ((kept * (SHADES - weight) + generated * weight + SHADES // 2) // SHADES).astype(np.uint8)


def masked_box(mask: np.ndarray, padding: int, ratio: float) -> Box | None:
    """The box around all that is not black, with `padding` pixels on each side, widened to width / height = `ratio`.

    It stays inside the image, which can make it narrower than that. None if the mask is black.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    height, width = mask.shape
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, height)
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, width)
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _widened(top, bottom, int((right - left) / ratio), height)
    else:
        left, right = _widened(left, right, int((bottom - top) * ratio), width)
    return left, top, right, bottom


def _widened(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """The interval widened to `length` on both sides alike, moved into 0..limit, and cut there if it is too long."""
    length = max(length, high - low)  # the ratio's rounding must cut nothing off
    low -= (length - (high - low)) // 2
    low = max(0, min(low, limit - length))
    return low, min(low + length, limit)


def filled(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image uint8 (H, W, 3) whose masked part continues the colours around it.

    The kept part, blurred less and less, is laid over itself, so that the finest blur that reaches a pixel decides.
    A mask that keeps nothing gives black.
    """
    # Premultiplied, so that the blurs mix in no colour that the mask hides.
    kept = Image.fromarray(np.dstack([image, SHADES - mask])).convert("RGBa")
    result = Image.new("RGBA", kept.size)
    for radius, repetitions in SPREADS:
        layer = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(repetitions):
            result.alpha_composite(layer)
    return np.array(result.convert("RGB"))
