"""Embeddings that AUTOMATIC1111's web UI writes into pictures: as a PNG's text, or in the low bits of its borders.

Source: the layout of the web UI's `image_embedding.py`. A block of pixels stands at the left and another at the right,
each beside a black column; their low four bits are those of zlib's data, hidden by a known sequence of random numbers.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd_core.errors import ModelError

MAX_PIXELS = 2**24
MAX_JSON = 2**25
"""Bytes: 75 vectors of 768 numbers, written as decimals, have 1.3 MB."""

TEXT = "sd-ti-embedding"
NIBBLE = 0x0F

# What Pillow, zlib, json, and looking into what json returns, raise for damaged files.
UNREADABLE = (
    *(OSError, SyntaxError, Image.DecompressionBombError, zlib.error),
    *(ValueError, TypeError, LookupError, AttributeError, RecursionError),
)


def read_picture(path: Path) -> tuple[str | None, Tensor]:
    """The name that a picture (PNG or WebP) has for its embedding, and the vectors as they are stored.

    Raises `ModelError` that names the file if it is not a picture or holds no embedding.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ModelError(f"{path} has {picture.width} x {picture.height} pixels: it is not an embedding")
            text = picture.info.get(TEXT)
            written = _from_text(text) if isinstance(text, str) else _from_pixels(np.array(picture.convert("RGB")))
        value = json.loads(written)
        (param,) = value["string_to_param"].values()
        vectors = torch.tensor(param["TORCHTENSOR"], dtype=torch.float32)
    except UNREADABLE as error:
        raise ModelError(f"{path} is a picture without a readable embedding ({type(error).__name__})") from error
    name: Any = value.get("name")
    return (name if isinstance(name, str) else None), vectors


def _from_text(text: str) -> bytes:
    if len(text) > MAX_JSON:
        raise ValueError("too long")
    return base64.b64decode(text)


def _from_pixels(pixels: np.ndarray) -> bytes:  # uint8 (H, W, 3)
    """The data in the blocks at the left and right border; a black frame around all is ignored."""
    rows, columns = np.nonzero(pixels.min(axis=2))
    if not len(rows):
        raise ValueError("all black")
    inner = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] & NIBBLE
    black = np.flatnonzero(inner.max(axis=(0, 2)) == 0)
    if len(black) < 2:
        raise ValueError("no black columns")
    low, high = inner[:, : black[0]], inner[:, black[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        raise ValueError("two blocks of different size")
    data = (_revealed(high) << 4) | _revealed(low)
    inflating = zlib.decompressobj()
    written = inflating.decompress(data.tobytes(), MAX_JSON)
    if not inflating.eof:
        raise ValueError("incomplete or too long")
    return written


def _revealed(block: np.ndarray) -> np.ndarray:
    """The block without the numbers of the linear congruential generator that hide it."""
    state, numbers = 0, np.empty(block.size, np.uint8)
    for index in range(block.size):
        state = (1_664_525 * state + 1_013_904_223) % 2**32
        numbers[index] = state % 255
    revealed: np.ndarray = (block.reshape(-1) ^ (numbers & NIBBLE)).reshape(block.shape)
    return revealed
