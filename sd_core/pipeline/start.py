"""What a run starts from: an image's latents or none, the initial noise, and a mask's hold on the run.

Draws from the image's noise in this order: the posterior's sample of the sent image, the initial noise, the posterior's
sample of the kept part (only for a UNet that takes it).
"""

from collections.abc import Generator, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.pipeline.images import Source
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Wrap, unchanged
from sd_core.sampling.noise import NoiseSource
from sd_core.work import Call, EncodeWork, Prediction, Sampling, UNetWork, answering

Encoding = Generator[EncodeWork, tuple[Tensor, Tensor], Tensor]
"""Asks for the posterior of an image and returns latents."""


@dataclass(frozen=True)
class Start:
    """Clean latents (1, 4, h, w) to add noise to, None for pure noise; the initial noise; how a sampler is bound to the
    kept part; and the channels (k, c, h, w) that a UNet takes besides the latents, None if it takes no more.

    There is one entry for each input of a work, or one for all of them.
    """

    latents: Tensor | None
    noise: Tensor
    wrap: Wrap = unchanged
    channels: Tensor | None = None

    def shown(self, run: Generator[Any, Any, Tensor]) -> Generator[Any, Any, Tensor]:
        """The same run, whose every `UNetWork` has the channels too."""
        if self.channels is None:
            return run
        channels = self.channels

        def answer(asked: Any) -> Generator[Any, Any, Any]:
            if isinstance(asked, UNetWork):
                count = len(asked.latents)
                more = channels[:count].expand(count, -1, -1, -1)
                asked = replace(asked, latents=torch.cat([asked.latents, more], dim=1))
            return (yield asked)

        return answering(run, answer)


def begin(
    model: StableDiffusion, noise: NoiseSource, source: Source | None, *, tiling: bool = False
) -> Generator[EncodeWork, tuple[Tensor, Tensor], Start]:
    """Encode what there is to encode. With `source` None, and to edit an image, the run starts from pure noise."""
    latents = None
    if source is not None and not model.takes_image:
        latents = yield from _encoded(model, source.key, source.pixels, noise, tiling)
    initial = noise.initial()
    if source is not None and latents is not None:
        if latents.shape != initial.shape:
            latents = F.interpolate(latents, initial.shape[2:], mode="bilinear")
        if source.mask is not None:
            latents = _filled(latents, _latent_mask(source.mask, initial), initial, source.fill)
    return (yield from _bound(model, noise, source, latents, initial, tiling))


def begin_again(
    model: StableDiffusion, noise: NoiseSource, source: Source | None, latents: Tensor, *, tiling: bool = False
) -> Generator[EncodeWork, tuple[Tensor, Tensor], Start]:
    """The start of a further run, from clean latents (1, 4, h, w) of its size; a mask holds it to what they show."""
    return (yield from _bound(model, noise, source, latents, noise.initial(), tiling))


def _bound(
    model: StableDiffusion,
    noise: NoiseSource,
    source: Source | None,
    latents: Tensor | None,
    initial: Tensor,
    tiling: bool,
) -> Generator[EncodeWork, tuple[Tensor, Tensor], Start]:
    """A run from these latents and this noise, bound to what the mask keeps."""
    if model.takes_image and source is not None:
        channels = yield from edited_channels(model, source, initial, tiling)
        kept = channels[:1] * model.encoder.config.scale_factor if latents is None else latents
        mask = None if source.mask is None else _latent_mask(source.mask, initial)
        return Start(latents, initial, unchanged if mask is None else bound_to(kept, initial, mask), channels)
    if model.takes_mask:
        return Start(latents, initial, channels=(yield from channels_of(model, noise, source, initial, tiling)))
    if source is not None and source.mask is not None and latents is not None:
        return Start(latents, initial, bound_to(latents, initial, _latent_mask(source.mask, initial)))
    return Start(latents, initial)


def _latent_mask(mask: Tensor, latents: Tensor) -> Tensor:  # (1, 1, H, W) -> (1, 1, h, w)
    """The mask at the size of the latents, as ComfyUI brings it there."""
    return F.interpolate(mask, latents.shape[2:], mode="bilinear")


def bound_to(latents: Tensor, noise: Tensor, mask: Tensor) -> Wrap:
    """Binds a sampler to clean latents (1, 4, h, w) where `mask` (1, 1, h, w) is not 1.

    Before each call the kept part is the latents with the initial noise at the call's level, after it the prediction is
    mixed with the clean latents: what ComfyUI's samplers do, smooth for soft masks.
    """

    def wrap(sampling: Sampling) -> Sampling:
        def answer(call: Call) -> Generator[Call, Prediction, Prediction]:
            noised = latents + noise * call.sigma
            prediction = yield replace(call, x=call.x * mask + noised * (1 - mask))
            x0, x0_uncond = (each * mask + latents * (1 - mask) for each in (prediction.x0, prediction.x0_uncond))
            return Prediction(x0, x0_uncond)

        return answering(sampling, answer)

    return wrap


def _encoded(model: StableDiffusion, key: Hashable, pixels: Tensor, noise: NoiseSource, tiling: bool) -> Encoding:
    mean, logvar = yield EncodeWork(model.encoder_key, key, pixels, tiling)
    return model.encoder.sample(mean, logvar, noise.posterior(tuple(mean.shape)))


def _filled(latents: Tensor, mask: Tensor, noise: Tensor, fill: str) -> Tensor:
    """The latents whose masked part is noise or nothing, if that is what it starts from."""
    if fill == "latent_noise":
        return latents * (1 - mask) + noise * mask
    return latents * (1 - mask) if fill == "latent_nothing" else latents


def channels_of(
    model: StableDiffusion, noise: NoiseSource, source: Source | None, initial: Tensor, tiling: bool = False
) -> Encoding:
    """The mask and the latents of what is kept (Rombach et al. 2022, section 4.5; diffusers' inpainting pipeline).

    A mask of half and more counts as 1 there. Without one, all is repainted and what is kept is gray.
    """
    height, width = initial.shape[2:]
    key: Hashable
    if source is not None and source.kept is not None and source.mask is not None:
        key, kept = (source.key, "kept"), source.kept
        mask = F.interpolate((source.mask >= 0.5).float(), (height, width))
    else:
        scale = model.networks.vae.downscale
        key, kept = ("gray", height, width), initial.new_zeros(1, 3, height * scale, width * scale)
        mask = initial.new_ones(1, 1, height, width)
    latents = yield from _encoded(model, key, kept, noise, tiling)
    return torch.cat([mask, latents], dim=1)


def edited_channels(model: StableDiffusion, source: Source, initial: Tensor, tiling: bool = False) -> Encoding:
    """The latents (2, 4, h, w) of the image that is edited, the posterior's mean unscaled, and those of no image.

    Source: Brooks, Holynski & Efros 2023, "InstructPix2Pix", section 3.2; diffusers' pipeline.
    """
    scale = model.networks.vae.downscale
    size = tuple(side * scale for side in initial.shape[2:])
    pixels, key = source.pixels, source.key
    if pixels.shape[2:] != size:
        pixels, key = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1), (key, size)
    mean, _ = yield EncodeWork(model.encoder_key, key, pixels, tiling)
    return torch.cat([mean, torch.zeros_like(mean)])
