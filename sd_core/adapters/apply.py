"""An adapter as it is read from a file, and as a picture has it: at strengths of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

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
class Scaled:
    """A layer's change at a strength."""

    delta: Delta
    scale: float

    def add_to(self, out: Tensor, x: Tensor, padding: tuple[int, int] = NO_PADDING) -> None:
        """Add it to the layer's output in place; x is what the layer gets."""
        self.delta.add_to(out, x, self.scale, padding)
