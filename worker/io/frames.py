"""What every image format comes down to: one frame in RGB, with transparency laid on a plain ground."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from sd_core.errors import InvalidImage
from worker.io.limits import check_pixels

BLOCK_PIXELS = 1 << 20  # converted at a time, so that a deep image never exists as a whole in float64
MAX_LEVEL_16 = 65535.0
WHITE, BLACK = 255, 0  # grounds for transparency: of an image, of a mask


@dataclass(frozen=True)
class Frame:
    """The first frame of an image file: RGB as stored, before it is turned upright."""

    image: Image.Image
    orientation: int = 1  # EXIF's 1..8; 1 is upright
    animated: bool = False  # there are further frames


def open_image(data: bytes, *formats: str) -> ImageFile.ImageFile:
    """Read the header of an image of one of Pillow's `formats`; `load` decodes it.

    Raises `InvalidImage` for too many pixels, else what Pillow raises for a file that it cannot read.
    """
    image = Image.open(io.BytesIO(data), formats=formats)
    check_pixels(image.width, image.height)
    return image


def is_animated(image: Image.Image) -> bool:
    """Whether the file has further frames; not every reader of Pillow knows of such."""
    return bool(getattr(image, "is_animated", False))


def flattened(image: Image.Image, ground: int) -> Image.Image:
    """Any mode -> RGB, transparency laid on gray of the level `ground`. 16-bit levels are scaled, not clipped."""
    if image.mode.startswith("I"):
        clear = image.info.get("transparency")
        clear = clear if isinstance(clear, int) else None
        return gray_to_rgb(np.asarray(image), MAX_LEVEL_16, clear=clear, ground=ground)
    if image.mode == "La":  # Pillow converts premultiplied gray to nothing else
        image = image.convert("LA")
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = Image.new("RGBA", image.size, (ground, ground, ground, 255))
        return Image.alpha_composite(opaque, image).convert("RGB")
    return image.convert("RGB")


def gray_to_rgb(
    levels: np.ndarray, white: float, *, inverted: bool = False, clear: int | None = None, ground: int = WHITE
) -> Image.Image:  # (H, W) of any number type
    """Levels from 0 to `white` -> RGB. `inverted`: 0 is white. Pixels of the level `clear` are transparent
    and become `ground`."""
    gray = np.empty(levels.shape, np.uint8)
    for rows in row_blocks(levels):
        block = levels[rows].astype(np.float64)
        gray[rows] = np.clip(np.rint(block * (255.0 / white)), 0, 255)
        if inverted:
            gray[rows] = 255 - gray[rows]
        if clear is not None:
            gray[rows][levels[rows] == clear] = ground
    return Image.fromarray(gray).convert("RGB")


def white_of_floats(levels: np.ndarray) -> float:  # (H, W) floating point
    """The level that stands for white in an image of floating-point samples, 1 or 255.

    The file does not say, so the samples decide by majority: white is 255 if more than half of the positive samples
    exceed 1, else 1. So neither a few overshooting pixels nor a black background decide. Raises `InvalidImage` if a
    sample is not finite, or if more than half of the positive ones exceed 255: then the range is unknown.
    """
    positive = over_1 = over_255 = 0
    for rows in row_blocks(levels):
        block = levels[rows]
        if not np.isfinite(block).all():
            raise InvalidImage("image: has samples that are not finite numbers")
        positive += int(np.count_nonzero(block > 0))
        over_1 += int(np.count_nonzero(block > 1))
        over_255 += int(np.count_nonzero(block > 255))
    if over_255 * 2 > positive:
        raise InvalidImage("image: most of its floating-point samples exceed 255; white must be 1 or 255")
    return 255.0 if over_1 * 2 > positive else 1.0


def row_blocks(levels: np.ndarray) -> Iterator[slice]:
    """Slices of rows that cover `levels`, each of about `BLOCK_PIXELS` pixels."""
    height, width = levels.shape
    step = max(1, BLOCK_PIXELS // max(1, width))
    return (slice(top, top + step) for top in range(0, height, step))
