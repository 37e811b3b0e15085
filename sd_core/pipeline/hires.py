"""From the latents of a first pass to those that a second pass, at a larger size, begins with."""

from collections.abc import Generator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd_core.models.rrdbnet import RRDBNet
from sd_core.pipeline.images import PendingImage, Source
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sizes import Enlargement, enlarged
from sd_core.pipeline.upscale import upscaled
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.work import DecodeWork, EncodeWork, HostTask

LATENT_MODES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "latent": ("bilinear", False),
        "latent_antialiased": ("bilinear", True),
        "latent_bicubic": ("bicubic", False),
        "latent_bicubic_antialiased": ("bicubic", True),
        "latent_nearest": ("nearest", False),
        "latent_nearest_exact": ("nearest-exact", False),
    }
)
"""How torch interpolates latents, and whether it filters them, for the upscalers that need no pixels (A1111)."""

FILTERS: Mapping[str, Image.Resampling] = MappingProxyType({"nearest": Image.Resampling.NEAREST})
"""What pixels are resized with; all others by Lanczos, after an upscaler too."""


def second_start(
    request: Request, model: StableDiffusion, latents: Tensor, noise: NoiseSource, upscaler: RRDBNet | None
) -> Generator[Any, Any, Tensor]:
    """The clean latents (1, 4, h', w') that the second pass adds noise to, from those of the first (1, 4, h, w).

    Latents are interpolated; or decoded, enlarged as pixels and encoded again, with the posterior's sample
    drawn from `noise`. A network may enlarge the pixels first.
    """
    assert request.hires is not None
    size = enlarged(*request.generated_size, request.hires)
    mode = LATENT_MODES.get(request.hires.upscaler)
    if mode is not None:
        return _interpolated(latents, size, model.networks.vae.downscale, *mode)
    pixels = yield DecodeWork(model.vae_key, latents, request.tiling)
    image = yield HostTask(PendingImage(pixels).wait)
    if upscaler is not None:
        image = yield from upscaled(image, upscaler, model.device)
    enlarge = partial(size.applied, image, FILTERS.get(request.hires.upscaler, Image.Resampling.LANCZOS))
    source = Source.of((yield HostTask(enlarge)), model.device)
    mean, logvar = yield EncodeWork(model.encoder_key, source.key, source.pixels, request.tiling)
    return model.encoder.sample(mean, logvar, noise.posterior())


def _interpolated(latents: Tensor, size: Enlargement, downscale: int, mode: str, antialias: bool) -> Tensor:
    width, height = (side // downscale for side in size.covering)
    larger = F.interpolate(latents, (height, width), mode=mode, antialias=antialias)
    left, top = (side // downscale for side in size.corner)
    columns, rows = (side // downscale for side in size.size)
    return larger[..., top : top + rows, left : left + columns].contiguous()
