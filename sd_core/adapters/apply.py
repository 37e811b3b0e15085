"""An adapter as it is read from a file, and as a picture has it: at strengths of its own."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from sd_core.adapters.blocks import Blocks
from sd_core.adapters.delta import NO_PADDING, Delta
from sd_core.work import Embedding


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a file adds to each layer, by layer name as `named_modules` of the UNet and the text encoder spells it.

    Adapters with equal keys are equal. `embeddings` are those that the file brings along, `label` is its hash in
    AUTOMATIC1111's infotexts, `ignored` names what of the file was not used.
    """

    key: str
    unet: Mapping[str, Delta] = field(default_factory=dict, repr=False)
    text: Mapping[str, Delta] = field(default_factory=dict, repr=False)
    embeddings: tuple[Embedding, ...] = ()
    label: str = ""
    ignored: tuple[str, ...] = ()

    @cached_property
    def nbytes(self) -> int:
        """Memory of all its tensors."""
        return sum(delta.nbytes for deltas in (self.unet, self.text) for delta in deltas.values())


@dataclass(frozen=True)
class Strength:
    """How strongly a picture has an adapter: factors of the UNet's layers and of the text encoder's.

    `blocks` are further factors by part of the networks; `rank` is the number of ranks that are used, None for all.
    """

    unet: float = 1.0
    text: float = 1.0
    blocks: Blocks | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Scaled:
    """A layer's change at a strength."""

    delta: Delta
    scale: float

    def add_to(
        self, out: Tensor, x: Tensor, padding: tuple[int, int] = NO_PADDING, gates: Tensor | None = None
    ) -> None:
        """As `Delta.add_to`."""
        self.delta.add_to(out, x, self.scale, padding, gates)


@dataclass(frozen=True, eq=False)
class Applied:
    """What adapters add to the layers of one network. Those with equal keys add the same."""

    key: Hashable
    layers: Mapping[str, Scaled] = field(repr=False)


def applied_to_unet(adapter: Adapter, strength: Strength) -> Applied | None:
    """What an adapter adds to a UNet; None if that is nothing."""
    factors = {name: strength.unet * _factor(strength.blocks, name) for name in adapter.unet}
    return _applied(adapter, adapter.unet, factors, strength, (strength.unet, strength.blocks))


def applied_to_text(adapter: Adapter, strength: Strength) -> Applied | None:
    """What an adapter adds to a text encoder; None if that is nothing."""
    factor = strength.text * (1.0 if strength.blocks is None else strength.blocks.base)
    return _applied(adapter, adapter.text, dict.fromkeys(adapter.text, factor), strength, factor)


def _factor(blocks: Blocks | None, name: str) -> float:
    return 1.0 if blocks is None else blocks.of(name)


def _applied(
    adapter: Adapter, deltas: Mapping[str, Delta], factors: Mapping[str, float], strength: Strength, key: Hashable
) -> Applied | None:
    layers = {
        name: Scaled(delta if strength.rank is None else delta.shortened(strength.rank), factors[name])
        for name, delta in deltas.items()
        if factors[name]
    }
    return Applied((adapter.key, key, strength.rank), layers) if layers else None
