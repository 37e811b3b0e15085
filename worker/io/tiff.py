"""TIFF: the first image, whatever kind of samples it has; a kind that would be decoded wrong is refused by name.

Pillow reads the file after its directory has been written anew with those tags alone (`tiff_tags`), so damaged
metadata does not matter. Gray samples that Pillow cannot show are read as integers of the same size and converted here.
"""

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from sd_core.errors import InvalidImage
from worker.io import tiff_tags as tags
from worker.io.exif import orientation_of
from worker.io.frames import Frame, flattened, gray_to_rgb, white_of_floats
from worker.io.limits import check_pixels
from worker.io.tiff_tags import Directory, Value, read_directory, with_tags

UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4  # SampleFormat
FORMATS = {UNSIGNED: "unsigned integer", SIGNED: "signed integer", FLOAT: "floating-point", 5: "complex", 6: "complex"}
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1  # PhotometricInterpretation
COLOURS = {
    WHITE_IS_ZERO: "gray", BLACK_IS_ZERO: "gray", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab",
}  # fmt: skip
DEEP_UNSIGNED, DEEP_FLOAT = (12, 16, 32), (16, 32, 64)  # bits of the gray samples that are converted here
CONTIGUOUS = 1  # PlanarConfiguration
NATIVE = {"I;32S": "I;32NS", "I;32BS": "I;32NS", "F;32F": "F;32NF", "F;32BF": "F;32NF"}  # Pillow's raw modes


@dataclass(frozen=True)
class Samples:
    """How the file says that its pixels are stored."""

    kind: int  # SampleFormat, the same for all samples
    bits: int
    count: int  # of a pixel
    colours: int  # PhotometricInterpretation
    planar: int
    predictor: int

    def describe(self) -> str:
        colours = COLOURS.get(self.colours, f"photometric {self.colours}")
        kind = FORMATS.get(self.kind, f"format {self.kind}")
        separate = " in separate planes" if self.planar != CONTIGUOUS and self.count > 1 else ""
        predicted = f" with predictor {self.predictor}" if self.predictor != 1 else ""
        return f"{self.bits}-bit {kind} samples ({self.count} of {colours}{separate}{predicted})"


def first_frame(data: bytes, ground: int) -> Frame:
    """A TIFF file -> its first image. Raises `InvalidImage`, or what Pillow raises for broken pixel data."""
    directory = read_directory(data)
    samples = _samples(directory)
    check_pixels(directory.number(tags.WIDTH, 0), directory.number(tags.HEIGHT, 0))
    gray = samples.colours in (WHITE_IS_ZERO, BLACK_IS_ZERO) and samples.count == 1
    if gray and samples.kind == UNSIGNED and samples.bits in DEEP_UNSIGNED:
        image = _unsigned_gray(data, directory, samples)
    elif gray and samples.kind == FLOAT and samples.bits in DEEP_FLOAT:
        image = _float_gray(data, directory, samples)
    elif samples.kind == UNSIGNED and _is_plain(directory, samples):
        image = flattened(_load(data, directory, samples, {}), ground)
    else:
        raise _unsupported(samples)
    return Frame(image, directory.orientation or orientation_of(None, directory.xmp), directory.more)


def _samples(directory: Directory) -> Samples:
    kinds, bits = (_numbers(directory, tag) for tag in (tags.SAMPLE_FORMAT, tags.BITS))
    if len(kinds) > 1 or len(bits) > 1:
        raise InvalidImage("image: a TIFF whose samples are not all of one kind is not supported")
    kind = kinds.pop()
    return Samples(
        kind=UNSIGNED if kind == UNDEFINED else kind,
        bits=bits.pop(),
        count=directory.number(tags.SAMPLES_PER_PIXEL, 1),
        colours=directory.number(tags.PHOTOMETRIC, WHITE_IS_ZERO),
        planar=directory.number(tags.PLANAR, CONTIGUOUS),
        predictor=directory.number(tags.PREDICTOR, 1),
    )


def _is_plain(directory: Directory, samples: Samples) -> bool:
    """Whether Pillow either reads the samples right or refuses them: in separate planes it reads some kinds wrong."""
    planes = samples.planar != CONTIGUOUS and samples.count > 1
    return not planes or (samples.bits == 8 and directory.number(tags.FILL_ORDER, 1) == 1)


def _numbers(directory: Directory, tag: int) -> set[int]:
    value = directory.tags.get(tag, (1,))  # both tags that are asked for default to 1
    return set(value) if isinstance(value, tuple) else {0}


def _unsigned_gray(data: bytes, directory: Directory, samples: Samples) -> Image.Image:
    if samples.bits == 12:  # packed bit by bit, so the byte order does not matter, and Pillow knows only this one
        levels = _gray_levels(data, replace(directory, order="<"), samples, {})
    elif samples.bits == 16:
        levels = _gray_levels(data, directory, samples, {})
    else:
        levels = _gray_levels(data, directory, samples, {tags.SAMPLE_FORMAT: (SIGNED,)}).view(np.uint32)
    return gray_to_rgb(levels, (1 << samples.bits) - 1, inverted=samples.colours == WHITE_IS_ZERO)


def _float_gray(data: bytes, directory: Directory, samples: Samples) -> Image.Image:
    if samples.bits == 32:
        levels = _gray_levels(data, directory, samples, {tags.SAMPLE_FORMAT: (FLOAT,)})
    elif samples.predictor != 1:
        raise _unsupported(samples)  # undoing it takes the samples' true type, and they are read as another one
    elif samples.bits == 16:
        levels = _gray_levels(data, directory, samples, {}).astype(np.uint16, copy=False).view(np.float16)
    else:
        levels = _float64(data, directory, samples)
    return gray_to_rgb(levels, white_of_floats(levels), inverted=samples.colours == WHITE_IS_ZERO)


def _float64(data: bytes, directory: Directory, samples: Samples) -> np.ndarray:  # (H, W)
    """64-bit samples, read as two of 32 bits each."""
    doubled = {tag: (directory.number(tag, 0) * 2,) for tag in (tags.WIDTH, tags.TILE_WIDTH) if tag in directory.tags}
    as_pairs: dict[int, Value] = {**doubled, tags.BITS: (32,), tags.SAMPLE_FORMAT: (SIGNED,)}
    levels = _gray_levels(data, directory, samples, as_pairs)
    pairs = levels.reshape(levels.shape[0], -1, 2)
    if (directory.order == "<") != (sys.byteorder == "little"):
        pairs = pairs[..., ::-1]
    return np.ascontiguousarray(pairs).view(np.float64)[..., 0]


def _gray_levels(
    data: bytes, directory: Directory, samples: Samples, changes: Mapping[int, Value]
) -> np.ndarray:  # (H, W)
    """The samples of a gray image with these tags in place of its own, as numbers, whichever of them is white."""
    plain: dict[int, Value] = {tags.PHOTOMETRIC: (BLACK_IS_ZERO,), **changes}
    return np.asarray(_load(data, directory, samples, plain))


def _load(data: bytes, directory: Directory, samples: Samples, changes: Mapping[int, Value]) -> Image.Image:
    """Decode the pixels of an image with these tags in place of its own; unsigned samples unless they say otherwise."""
    read_as = {**directory.tags, tags.SAMPLE_FORMAT: (UNSIGNED,) * samples.count, **changes}
    if samples.count == 1:
        read_as[tags.PLANAR] = (CONTIGUOUS,)  # the same for one sample, and Pillow misreads most kinds in planes
    file = io.BytesIO(with_tags(data, directory.order, read_as))
    try:
        image = Image.open(file, formats=("TIFF",))  # its size has been checked
    except UnidentifiedImageError as error:
        raise _unsupported(samples) from error
    image.tile = [_in_native_order(tile) for tile in image.tile]
    image.load()
    return image


def _in_native_order(tile: Any) -> Any:
    """libtiff hands over 32-bit samples in the machine's byte order, where Pillow expects the file's."""
    if tile.codec_name != "libtiff":
        return tile
    raw_mode, *rest = tile.args
    return tile._replace(args=(NATIVE.get(raw_mode, raw_mode), *rest))


def _unsupported(samples: Samples) -> InvalidImage:
    return InvalidImage(f"image: a TIFF with {samples.describe()} is not supported")
