"""The kinds of work that networks do: one file each, registered here."""

from collections.abc import Mapping
from typing import Any

from sd_core.engine.kinds.hint import HintKind
from sd_core.engine.kinds.image_prompt import ImageKind
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.kinds.text import TextKind
from sd_core.engine.kinds.unet import UNetKind
from sd_core.engine.kinds.upscale import UpscaleKind
from sd_core.engine.kinds.vae import DecodeKind, EncodeKind
from sd_core.engine.pool import Pool
from sd_core.work import DecodeWork, EncodeWork, HintWork, ImageWork, TextWork, UNetWork, UpscaleWork

Kinds = Mapping[type, Kind[Any]]
"""The kind that runs each type of work."""


def kinds_of(pool: Pool, max_batch: int) -> Kinds:
    """All kinds, for the networks of a pool; `max_batch` guided images of native size share a forward of a UNet."""
    return {
        TextWork: TextKind(pool),
        EncodeWork: EncodeKind(pool),
        HintWork: HintKind(),
        ImageWork: ImageKind(),
        UNetWork: UNetKind(pool, max_batch),
        DecodeWork: DecodeKind(pool),
        UpscaleWork: UpscaleKind(),
    }
