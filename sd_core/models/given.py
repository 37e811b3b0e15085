"""What one forward of a network is given beside its inputs; each layer looks up its own part by its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""What a cross-attention reads of a context (R, S, context_dim): keys and values, each (R, S, dim)."""

Adapter = Callable[[Tensor, Tensor], Tensor]
"""A layer's input and output -> its output with the adapter's part added; changes neither of its arguments."""


@dataclass(frozen=True)
class Given:
    """The mappings are keyed by layer name, as `named_modules` of the network spells it.

    `image_of_row` (R,) says which of the forward's B inputs each of its R rows continues; None means row i is input i.
    `padding` is "zeros" or "circular"; a convolution that is not named pads with zeros.
    """

    keys_values: Mapping[str, KeysValues] = field(default_factory=dict)
    image_of_row: Tensor | None = None
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    padding: Mapping[str, str] = field(default_factory=dict)

    def per_row(self, x: Tensor) -> Tensor:
        """A tensor with one entry per input (B, ...), expanded to one per row (R, ...)."""
        return x if self.image_of_row is None else x[self.image_of_row]


NOTHING = Given()
