"""Hints of pictures -> features that a ControlNet or a T2I-Adapter steers by."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.engine.kinds.kind import Kind
from sd_core.layout.choose import bytes_to_pack
from sd_core.models.controlnet import ControlNet
from sd_core.models.given import NOTHING, Given
from sd_core.models.t2i_adapter import T2IAdapter
from sd_core.work import Hint, HintWork

# Hints that are kept, and their bytes: 5 MB each with v1.5 at 512 x 512 in float32.
KEPT, KEPT_BYTES = 16, 2**26


class HintKind(Kind[HintWork]):
    """One hint a forward, embedded once and answered to all that ask for it."""

    phase = "encode"

    def __init__(self) -> None:
        self._kept: LRU[Hashable, Hint] = LRU(KEPT, KEPT_BYTES, lambda hint: sum(each.nbytes for each in hint.values))

    @property
    def capacity(self) -> float:
        return 1

    def key(self, work: HintWork) -> Hashable:
        return work.network.key, work.key, work.pixels.shape, work.tiling

    def identity(self, work: HintWork) -> Hashable:
        return self.key(work)

    def cost(self, work: HintWork) -> float:  # noqa: ARG002
        return 0  # the forward holds one hint, however many ask for it

    def bytes(self, work: HintWork) -> int:
        network = work.network
        # A ControlNet's weights are used at its first step; what is embedded here is a small part of them.
        waiting = bytes_to_pack(network) if isinstance(network, T2IAdapter) else 0
        return network.hint_bytes(work.pixels.shape[2:].numel()) + waiting

    def run(self, works: Sequence[HintWork]) -> list[Hint]:
        return [self._embedded(work) for work in works]

    def release(self) -> None:
        self._kept.clear()

    def _embedded(self, work: HintWork) -> Hint:
        hint = self._kept.get(self.key(work))
        if hint is None:
            hint = Hint(self.key(work), _values(work))
            self._kept.put(hint.key, hint)
        return hint


def _values(work: HintWork) -> tuple[Tensor, ...]:
    network = work.network
    assert isinstance(network, ControlNet | T2IAdapter)
    given = Given(padding=network.circular) if work.tiling else NOTHING
    pixels = _in_channels(work.pixels, network.hint_channels)
    if isinstance(network, ControlNet):
        return (network.embed(pixels, given),)
    features: tuple[Tensor, ...] = network(pixels, given)
    return features


def _in_channels(pixels: Tensor, channels: int) -> Tensor:
    """A hint in gray for a network that takes one channel."""
    return torch.mean(pixels, dim=1, keepdim=True) if channels == 1 else pixels
