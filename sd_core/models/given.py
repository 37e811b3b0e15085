"""What one forward of a network is given beside its inputs; each layer looks up its own part by its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""What a cross-attention reads of a context (R, S, context_dim): keys and values, each (R, S, dim)."""


class Adapter(Protocol):
    """Adds what adapters make of a layer's input to its output."""

    def __call__(self, x: Tensor, out: Tensor, padding: tuple[int, int], gates: Tensor | None = None, /) -> Tensor:
        """The output with their part added, perhaps in place: the layer made it anew.

        x is what the layer gets; a convolution pads it with so many rows and columns of zeros. Of a gated layer, `out`
        are the values and `gates` the other half of the output, which is added to in place.
        """
        ...


@dataclass(frozen=True)
class FreeU:
    """The rows (k,) whose backbone and skip connections are reweighed, and how: `scales` (k, 4) are b1, b2, s1, s2."""

    rows: Tensor
    scales: Tensor


@dataclass(frozen=True)
class ImageRead:
    """What an attention reads of images besides prompts: keys and values (k, S, dim), the values times their weights.

    Entry i is added to row `rows[i]`, which may have several; None means entry i belongs to row i, for all rows.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class Residuals:
    """What is added to feature maps of the rows in `rows` (k,), None: of all rows.

    `tensors[i]` (k, C, h, w) belongs to the i-th feature map; h and w may be 1.
    """

    tensors: Sequence[Tensor]
    rows: Tensor | None = None

    def added(self, x: Tensor, index: int) -> Tensor:  # (R, C, h, w)
        """The i-th feature map with its residual; x is not changed."""
        tensor = self.tensors[index]
        return x + tensor if self.rows is None else x.index_add(0, self.rows, tensor.expand(-1, -1, *x.shape[2:]))


@dataclass(frozen=True)
class Given:
    """The mappings are keyed by layer name, as `named_modules` of the network spells it.

    `image_of_row` (R,) says which of the forward's B inputs each of its R rows continues; None means row i is input i.
    `adapters` are those of layers that get one entry per input, `row_adapters` of those that get one per row; None
    means the same.
    `padding` is "zeros" or "circular"; a convolution that is not named pads with zeros. In a self-attention named in
    `identity`, each of these rows (k,) attends to itself alone. One named in `merged` sees that part of its tokens
    merged into similar ones, which is an approximation. `images` are what attentions to prompts read of images, one
    entry for each length. `control` is added to what the UNet's encoder hands to its decoder, the skip connections and
    then the middle block's output; `features` are added to the last output of each level, on the way down.
    """

    keys_values: Mapping[str, KeysValues] = field(default_factory=dict)
    image_of_row: Tensor | None = None
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    row_adapters: Mapping[str, Adapter] | None = None
    padding: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[str, float] = field(default_factory=dict)
    freeu: FreeU | None = None
    images: Mapping[str, Sequence[ImageRead]] = field(default_factory=dict)
    control: tuple[Residuals, ...] = ()
    features: tuple[Residuals, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the network runs as it was trained, on keys and values alone."""
        changes = (
            *(self.adapters, self.row_adapters, self.images, self.control, self.features),
            *(self.padding, self.identity, self.merged, self.freeu),
        )
        return not any(changes)

    @property
    def expanded(self) -> "Given":
        """What the layers are given that get one entry per row."""
        adapters = self.adapters if self.row_adapters is None else self.row_adapters
        return replace(self, image_of_row=None, adapters=adapters, row_adapters=None)

    def per_row(self, x: Tensor) -> Tensor:
        """A tensor with one entry per input (B, ...), expanded to one per row (R, ...)."""
        return x if self.image_of_row is None else x[self.image_of_row]

    def controlled(self, x: Tensor, index: int) -> Tensor:  # (R, C, h, w)
        """The i-th skip connection, or after the last of them the middle block's output, with what controls add."""
        for residuals in self.control:
            x = residuals.added(x, index)
        return x

    def with_features(self, x: Tensor, level: int) -> Tensor:  # (R, C, h, w)
        """The last output of a level with the features that are added to it."""
        for residuals in self.features:
            x = residuals.added(x, level)
        return x


NOTHING = Given()
