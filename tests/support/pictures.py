"""Images as bytes, base64 and data URIs, and the difference of two of them."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def picture_of(encoded: str) -> Image.Image:
    """Base64 of an image file -> the image, completely decoded."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    image.load()
    return image


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """An image -> the bytes of a file; the options are Pillow's."""
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def png_base64(image: Image.Image) -> str:
    return base64.b64encode(file_of(image)).decode("ascii")


def data_uri(image: Image.Image) -> str:
    """An image as a job may send it."""
    return "data:image/png;base64," + png_base64(image)


def noise_picture(width: int, height: int) -> Image.Image:
    """A grayscale image of random noise."""
    return Image.effect_noise((width, height), 100)


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB; 99 if they are equal."""
    assert ours.shape == theirs.shape
    error = np.square(ours.astype(np.float64) - theirs.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def levels_apart(one: np.ndarray, other: np.ndarray) -> int:
    """The largest difference of two uint8 images of one shape, in levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())
