"""Preprocessors by name: what each makes of an image, and what its two settings mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image

from sd_core.preprocessors.canny import canny
from sd_core.preprocessors.lines import gaussian_blur, lineart_standard, scribble_xdog

Run = Callable[[np.ndarray, float, float], np.ndarray]
"""An image uint8 (H, W, 3) and two settings -> the control image, uint8 (H, W) or (H, W, 3)."""


@dataclass(frozen=True)
class Preprocessor:
    """`low` and `high` are the settings' defaults."""

    run: Run
    low: float = 0.0
    high: float = 0.0


def _invert(image: np.ndarray, _low: float, _high: float) -> np.ndarray:
    return 255 - image


def _threshold(image: np.ndarray, low: float, _high: float) -> np.ndarray:
    return np.where(np.asarray(Image.fromarray(image).convert("L")) > low, np.uint8(255), np.uint8(0))


def _blur(image: np.ndarray, low: float, _high: float) -> np.ndarray:
    return np.rint(gaussian_blur(image, low)).astype(np.uint8) if low > 0 else image


def _tile(image: np.ndarray, low: float, _high: float) -> np.ndarray:
    """The image without detail finer than `low` pixels, at its own size."""
    height, width = image.shape[:2]
    if low <= 1:
        return image
    small = Image.fromarray(image).resize(
        (max(1, round(width / low)), max(1, round(height / low))), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.LANCZOS))


PREPROCESSORS: Mapping[str, Preprocessor] = MappingProxyType(
    {
        "canny": Preprocessor(canny, 100, 200),
        "invert": Preprocessor(_invert),
        "threshold": Preprocessor(_threshold, 127),
        "scribble_xdog": Preprocessor(lambda image, low, _high: scribble_xdog(image, low), 32),
        "lineart_standard": Preprocessor(lambda image, _low, _high: lineart_standard(image)),
        "blur": Preprocessor(_blur, 9),
        "tile": Preprocessor(_tile, 1),
    }
)
"""All but `none`, which is the image itself, and `inpaint`, which needs a mask."""


def preprocess(name: str, image: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """The control image, uint8 (H, W, 3), that a preprocessor makes of an image of that shape.

    `low` and `high` None mean its defaults. `none` returns the image.
    """
    if name == "none":
        return image
    preprocessor = PREPROCESSORS[name]
    settings = (preprocessor.low if low is None else low, preprocessor.high if high is None else high)
    made = preprocessor.run(image, *settings)
    return made if made.ndim == 3 else np.repeat(made[..., None], 3, axis=2)


def inpaint_hint(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The hint of an inpainting ControlNet, float32 (H, W, 3): the image uint8 in [0, 1], -1 where the mask uint8
    (H, W) is over a half."""
    return np.where(mask[..., None] > 127, np.float32(-1), image.astype(np.float32) / 255)
