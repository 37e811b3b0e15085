"""The picture that a job brings: base64, data URI or URL -> uint8 RGB at the size that is drawn."""

import base64
import binascii
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sd_core.errors import InvalidImage

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 50_000_000
"""A picture with more is refused by its header, before anything is decoded."""

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are opened. Not every one that Pillow knows: some of its readers start other programs."""

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Picture:
    """A decoded picture, RGB and upright, and what its sender should be told about it."""

    image: Image.Image
    warnings: tuple[str, ...] = ()


def is_url(source: str) -> bool:
    return source[:8].lower().startswith(("http://", "https://"))


def decode_base64(source: str) -> bytes:
    """The bytes of a base64 string or a data URI; line breaks in it do not matter. Raises `InvalidImage`."""
    if source[:5].lower() == "data:":
        header, comma, body = source.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise InvalidImage("image: the data URI is not one of base64 (data:image/png;base64,...)")
    elif "://" in source[:64]:
        scheme = source.partition("://")[0]
        raise InvalidImage(f"image: a URL begins with http:// or https://, not {scheme!a}")
    else:
        body = source
    if len(body) > MAX_BYTES * 3 // 2:
        raise InvalidImage(f"image: {len(body):,} characters are over the limit of {MAX_BYTES:,} bytes")
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage(
            f"image: a string of {len(source):,} characters is no base64, no data URI and no http(s) URL"
        ) from error
    if not data:
        raise InvalidImage("image: holds no bytes")
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"image: {len(data):,} bytes are over the limit of {MAX_BYTES:,}")
    return data


def decode_picture(data: bytes) -> Picture:
    """A picture file's bytes -> its first frame, upright by its EXIF tag, transparency laid on white, as RGB.

    White is what AUTOMATIC1111 lays it on. Raises `InvalidImage`, for too many pixels before decoding them.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise InvalidImage(
                f"image: {image.width} x {image.height} is {image.width * image.height:,} pixels, "
                f"over the limit of {MAX_PIXELS:,}"
            )
        notes = _notes(image)
        image.load()
        return Picture(to_rgb(ImageOps.exif_transpose(image)), notes)
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # from open() itself
        raise InvalidImage(f"image: has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(
            f"image: {len(data):,} bytes are no picture of a known format ({', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # a broken file makes Pillow's readers raise nearly anything
        raise InvalidImage(f"image: the picture is broken or truncated ({type(error).__name__})") from error


def _notes(image: Image.Image) -> tuple[str, ...]:
    # A phone's MPO is a JPEG with further views of one moment, no animation.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        return ("image is animated: its first frame was used",)
    return ()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB. Levels of more than 8 bits are scaled, not clipped; transparency is laid on white."""
    if image.mode in SIXTEEN_BIT or image.mode in ("I", "F"):
        return _deep_gray_to_rgb(image)
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _deep_gray_to_rgb(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not np.isfinite(levels).all():
            raise InvalidImage("image: holds levels that are not finite")
        white = 1.0 if levels.max() <= 1 else 255.0
    else:
        white = 65535.0
    gray = np.clip(np.rint(levels * (255.0 / white)), 0, 255).astype(np.uint8)
    if image.mode != "F" and isinstance(clear := image.info.get("transparency"), int):
        gray[levels == clear] = 255
    return Image.fromarray(gray).convert("RGB")
