"""The networks that works carry, as far as those who carry and run them need to know."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


class Upscaler(Protocol):
    """A network that enlarges pixels."""

    @property
    def scale(self) -> int: ...

    def __call__(self, pixels: Tensor, /) -> Any: ...

    def bytes_for(self, pixels: int) -> int:
        """Memory that a forward holds at its peak for so many pixels, beyond weights."""
        ...


class Added(Protocol):
    """What an adapter adds to the output of one layer."""

    def add_to(self, out: Tensor, x: Tensor, padding: tuple[int, int], gates: Tensor | None) -> None:
        """Add it in place, given what the layer gets and how it pads that with zeros."""
        ...


class Applied(Protocol):
    """What an adapter adds to the layers of one network, by their names. Those with equal keys add the same."""

    @property
    def key(self) -> Hashable: ...

    @property
    def layers(self) -> Mapping[str, Added]: ...


class Guide(Protocol):
    """A network that steers a UNet by a hint: a ControlNet or a T2I-Adapter. Equal keys mean equal networks."""

    @property
    def key(self) -> str: ...

    @property
    def hint_channels(self) -> int: ...

    def hint_bytes(self, pixels: int, /) -> int:
        """Memory that embedding a hint of so many pixels holds at its peak, beyond weights."""
        ...


class ImageTokenizer(Protocol):
    """Makes tokens of images. Those with equal keys make the same."""

    @property
    def key(self) -> Hashable: ...

    def bytes_for(self, images: int) -> int:
        """Memory that a forward holds at its peak for so many images, beyond weights."""
        ...

    def tokens(self, pixels: Tensor) -> Tensor:  # (B, 3, side, side) -> (B, T, D)
        ...

    def no_tokens(self) -> Tensor:
        """Those of no image (1, T, D)."""
        ...


class ImageAdapter(Protocol):
    """What the attentions of a UNet read images by."""

    def read(self, tokens: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Keys and values of tokens (B, T, D), (B, T, dim) each, by the names of attentions in its files' order."""
        ...
