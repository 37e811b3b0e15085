"""Upscalers from files: looked up by name, loaded once, and run tile by tile."""

import threading
from collections.abc import Callable, Generator, Mapping
from difflib import get_close_matches
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sd_core.cache import LRU
from sd_core.checks import shorten
from sd_core.errors import InvalidRequest
from sd_core.formats.upscaler import load_upscaler
from sd_core.models.rrdbnet import RRDBNet
from sd_core.models.tiles import Mosaic
from sd_core.nested import UPSCALERS, Hires
from sd_core.pipeline.images import PendingImage, to_pixels
from sd_core.work import HostTask, UpscaleWork

TILE, OVERLAP = 192, 16
"""Pixels on the side of a tile, so that it delays a UNet step by about one step; and in a seam."""

KEPT, KEPT_BYTES = 8, 2**28
"""Upscalers that stay loaded: one has 67 MB in float32."""

NO_FILES: Mapping[str, Path] = MappingProxyType({})

Load = Callable[[], RRDBNet]


class Upscalers:
    """The upscalers that are files, by name; the last ones used stay loaded. Safe to use from several threads."""

    def __init__(self, files: Mapping[str, Path], device: torch.device) -> None:
        self._files, self._device = files, device
        self._loaded: LRU[str, RRDBNet] = LRU(KEPT, KEPT_BYTES, lambda network: network.weight_bytes)
        self._lock = threading.Lock()

    def of(self, hires: Hires | None) -> Load | None:
        """How to load the upscaler of a hires pass, on a thread that may block; None if it needs no file.

        Raises `InvalidRequest`, with the nearest name and all there are, if there is none of this name.
        """
        if hires is None or hires.upscaler in UPSCALERS:
            return None
        return partial(self._load, self._named(hires.upscaler))

    def _named(self, name: str) -> str:
        stem = name.rsplit(".", 1)[0] if name.casefold().endswith((".pth", ".pt", ".safetensors")) else name
        for wanted in (name, stem):
            for known in self._files:
                if known.casefold() == wanted.casefold():
                    return known
        known_names = [*UPSCALERS, *self._files]
        near = get_close_matches(name, known_names, n=1)
        nearest = f"; did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(known_names)
        raise InvalidRequest(f"hires.upscaler: {shorten(name)} is not here{nearest}; there are: {listed}")

    def _load(self, name: str) -> RRDBNet:
        with self._lock:
            network = self._loaded.get(name)
            if network is None:
                network = load_upscaler(self._files[name], self._device)
                self._loaded.put(name, network)
            return network


def upscaled(image: np.ndarray, network: RRDBNet, device: torch.device) -> Generator[Any, Any, np.ndarray]:
    """uint8 (H, W, 3) -> uint8, `network.scale` times as wide and as high; asks for each tile by itself."""
    pixels = (to_pixels(image, device) + 1) / 2
    mosaic = Mosaic(pixels.shape[2:], TILE, OVERLAP, Fraction(network.scale))
    for place in mosaic.places:
        mosaic.add(place, (yield UpscaleWork(network, pixels[:, :, *place])))
    whole: np.ndarray = yield HostTask(PendingImage(2 * mosaic.joined() - 1).wait)
    return whole
