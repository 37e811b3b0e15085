"""Images -> latents and latents -> images."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sd_core.engine.kinds.kind import Degraded, Kind
from sd_core.engine.pool import Pool
from sd_core.models.vae import TILE, Autoencoder
from sd_core.work import DecodeWork, EncodeWork

PIXELS = 512 * 512
"""Pixels of one forward of a VAE, so that it delays a UNet step by about one step at most."""

NUMBERS = 8
"""Numbers that a VAE holds at its peak for a pixel, over the larger of its first two widths: see `bench.memory`."""

TILED = "not enough memory for a full {}; done in tiles, may differ slightly"


def _bytes(vae: Autoencoder, pixels: int) -> int:
    return NUMBERS * max(vae.config.channels[:2]) * vae.dtype.itemsize * pixels


class EncodeKind(Kind[EncodeWork]):
    """One image a forward, answered to all that ask for it: a flat image has channels of hardly any variance, and
    normalizing those would show the rounding of whatever shares the forward."""

    phase = "encode"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def capacity(self) -> float:
        return 1

    def key(self, work: EncodeWork) -> Hashable:
        return work.network, work.key, work.tiling

    def identity(self, work: EncodeWork) -> Hashable:
        return self.key(work)

    def cost(self, work: EncodeWork) -> float:  # noqa: ARG002
        return 0  # the forward holds one image, however many ask for it

    def bytes(self, work: EncodeWork) -> int:
        return _bytes(self._pool.vae(work.network), work.pixels.shape[2:].numel())

    def run(self, works: Sequence[EncodeWork]) -> list[tuple[Tensor, Tensor]]:
        return [self._pool.vae(work.network).moments(work.pixels, tiling=work.tiling) for work in works]

    def smallest(self, work: EncodeWork) -> EncodeWork | None:
        tile = TILE * self._pool.vae(work.network).downscale
        if max(work.pixels.shape[2:]) <= tile:
            return None
        return replace(work, pixels=work.pixels[..., :tile, :tile], tiling=False)

    def run_in_parts(self, work: EncodeWork) -> Degraded:
        moments = self._pool.vae(work.network).moments_tiled(work.pixels, tiling=work.tiling)
        return Degraded(moments, TILED.format("encode"))


class DecodeKind(Kind[DecodeWork]):
    """Latents of one shape, several in a forward as long as they are small."""

    phase = "decode"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def capacity(self) -> float:
        return max(PIXELS, self._pool.max_native_pixels)

    def key(self, work: DecodeWork) -> Hashable:
        return work.network, work.latents.shape, work.tiling

    def cost(self, work: DecodeWork) -> float:
        return self._pixels(work)

    def bytes(self, work: DecodeWork) -> int:
        return _bytes(self._pool.vae(work.network), self._pixels(work))

    def run(self, works: Sequence[DecodeWork]) -> Sequence[Tensor]:
        first, latents = works[0], torch.cat([work.latents for work in works])
        images: Sequence[Tensor] = self._pool.vae(first.network).decode(latents, tiling=first.tiling).split(1)
        return images

    def smallest(self, work: DecodeWork) -> DecodeWork | None:
        if max(work.latents.shape[2:]) <= TILE:
            return None
        return replace(work, latents=work.latents[..., :TILE, :TILE], tiling=False)

    def run_in_parts(self, work: DecodeWork) -> Degraded:
        images = self._pool.vae(work.network).decode_tiled(work.latents, tiling=work.tiling)
        return Degraded(images, TILED.format("decode"))

    def _pixels(self, work: DecodeWork) -> int:
        return self._pool.vae(work.network).downscale ** 2 * work.latents.shape[2:].numel()
