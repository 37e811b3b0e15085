"""What one forward of a network is given beside its inputs; each layer looks up its own part by its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""What a cross-attention reads of a context (R, S, context_dim): keys and values, each (R, S, dim)."""

Adapter = Callable[[Tensor, Tensor], Tensor]
"""A layer's input and output -> its output with the adapter's part added; changes neither of its arguments."""

NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Given:
    """The mappings are keyed by layer name, as `named_modules` of the network spells it.

    `image_of_row` (R,) says which of the forward's B inputs each of its R rows continues; None means row i is input i.
    `padding` is "zeros" or "circular"; a convolution that is not named pads with zeros.
    """

    keys_values: Mapping[str, KeysValues] = NONE
    image_of_row: Tensor | None = None
    adapters: Mapping[str, Adapter] = NONE
    padding: Mapping[str, str] = NONE


NOTHING = Given()
