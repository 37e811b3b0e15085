"""The two forms of an image: uint8 (H, W, 3) outside, [-1, 1] (1, 3, H, W) inside."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sd_core.device import Download, upload
from sd_core.errors import NotFinite


def to_pixels(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, H, W) in [-1, 1]."""
    pixels = upload(torch.from_numpy(np.ascontiguousarray(image)), device)
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


@dataclass(frozen=True)
class Frame:
    """What is repainted of a masked image, for whatever else the host makes of it.

    `shown` uint8 (H, W, 3) and `mask` uint8 (H, W) have the generated size. `box` (left, top, right, bottom) is the
    part of the sent image, of size `sent` (width, height), that is repainted; None if all of it is.
    """

    shown: np.ndarray
    mask: np.ndarray
    sent: tuple[int, int]
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Source:
    """The image that image-to-image starts from: pixels (1, 3, h, w) in [-1, 1]; equal keys mean equal sources.

    `mask` (1, 1, H, W) in [0, 1], of the generated size, is 1 where the image is repainted, and `fill` what the latents
    start from there. `kept` (1, 3, H, W) are the pixels that a UNet with channels for them is shown. `larger` is the
    same at the size of a hires pass, if a mask holds that too. `frame` is what is repainted of a masked image.
    """

    key: Hashable
    pixels: Tensor
    mask: Tensor | None = None
    fill: str = "original"
    kept: Tensor | None = None
    larger: "Source | None" = None
    frame: Frame | None = None

    @classmethod
    def of(cls, image: np.ndarray, device: torch.device) -> "Source":
        """uint8 (H, W, 3), on the device."""
        return cls(digest(image), to_pixels(image, device))


def digest(image: np.ndarray) -> Hashable:
    """Equal for equal arrays uint8."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


class PendingImage:
    """A finished image on its way from the device, from float pixels (1, 3, H, W) in about [-1, 1]."""

    def __init__(self, pixels: Tensor) -> None:
        levels = ((pixels[0].float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
        self._levels = Download(levels.permute(1, 2, 0).contiguous())
        self._is_finite = Download(torch.isfinite(pixels).all())

    def wait(self) -> np.ndarray:
        """uint8 (H, W, 3), clamped and rounded to the nearest level; blocks until the device is done.

        Raises `NotFinite` if the range of the networks' dtype was too narrow for the checkpoint.
        """
        if not self._is_finite.wait():
            raise NotFinite("the networks computed infinities or NaN; SD_DTYPE=bf16 or fp32 has a wider range")
        return self._levels.wait().numpy()
