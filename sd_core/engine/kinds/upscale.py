"""Tiles of pictures -> the same, larger."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from sd_core.engine.kinds.kind import Kind
from sd_core.work import UpscaleWork

PIXELS = 192 * 192
"""Pixels of one forward, so that it delays a UNet step by about one step at most."""


class UpscaleKind(Kind[UpscaleWork]):
    """Tiles of one shape for one network, several in a forward as long as they are small."""

    phase = "decode"

    @property
    def capacity(self) -> float:
        return PIXELS

    def key(self, work: UpscaleWork) -> Hashable:
        return work.network, work.pixels.shape

    def cost(self, work: UpscaleWork) -> float:
        return work.pixels.shape[2:].numel()

    def bytes(self, work: UpscaleWork) -> int:
        return work.network.bytes_for(work.pixels.shape[2:].numel())

    def run(self, works: Sequence[UpscaleWork]) -> Sequence[Tensor]:
        answers: Sequence[Tensor] = works[0].network(torch.cat([work.pixels for work in works])).split(1)
        return answers
