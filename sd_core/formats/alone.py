"""Networks that lie alone in a file: an image encoder, an IP-Adapter, an upscaler."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sd_core.errors import ModelError
from sd_core.formats.check import meta_network, require_equal
from sd_core.formats.files import TensorFile
from sd_core.formats.keys import show, show_some
from sd_core.formats.unpickle import open_checkpoint
from sd_core.layout.choose import lay_out

MAX_DIMENSION = 2**17
"""No dimension of such a network is larger: a hostile one would overflow in later arithmetic."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Network = TypeVar("Network", bound=nn.Module)


def whole(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Part:
    """A tensor of a network: what `take` makes of the tensor `stored` of a file."""

    stored: str
    take: Callable[[Tensor], Tensor] = whole

    def shape(self, shapes: Shapes) -> Shape:
        """Its shape in a file of these. ModelError if `take` cannot take it."""
        stored = shapes[self.stored]
        try:
            return tuple(self.take(torch.empty(stored, device="meta")).shape)
        except (IndexError, RuntimeError, TypeError):
            raise ModelError(f"{show(self.stored)} has the shape {list(stored)}, which does not fit") from None


Parts = Mapping[str, Part]
"""The tensors of a network by its own names."""

Understand = Callable[[Shapes], tuple[Callable[[], Network], Parts]]
"""How to build the network that tensors of these shapes belong to, and which of them it takes; the others are ignored.
ModelError if there is none."""


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shapes of a file's tensors by name. ModelError as above."""
    with open_checkpoint(path) as file:
        return file.shapes


def read_network(
    path: Path, device: torch.device, dtype: torch.dtype, understand: Understand[Network], *, packed: bool = False
) -> Network:
    """The network of a file on a device, in evaluation mode; with `packed`, laid out for the device.

    A pickled file is read by the allow-list reader, which runs nothing of it. ModelError, which names the file, if it
    is damaged or lacks a tensor.
    """
    with open_checkpoint(path) as file:
        try:
            network, parts = checked(file.shapes, understand)
            tensors = {name: _numbers(file, part).to(device, dtype) for name, part in parts.items()}
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
    if packed:
        lay_out(network, device, dtype)
    network.load_state_dict(tensors, assign=True)
    return network.requires_grad_(requires_grad=False).eval()


def checked(shapes: Shapes, understand: Understand[Network]) -> tuple[Network, Parts]:
    """The network of tensors of these shapes, not loaded, and which of them it takes. ModelError if it lacks one."""
    build, parts = understand(shapes)
    network = meta_network(build)
    expected = {name: tuple(each.shape) for name, each in network.state_dict().items()}
    require_equal({name: part.shape(shapes) for name, part in parts.items()}, expected)
    return network, parts


def dimension(shapes: Shapes, name: str, axis: int) -> int:
    """One side of a tensor. ModelError if it is missing or of another kind."""
    shape = shapes.get(name)
    if shape is None:
        raise ModelError(f"it lacks {name}; its {len(shapes)} tensors are {show_some(shapes)}")
    if axis >= len(shape) or not 0 < shape[axis] <= MAX_DIMENSION:
        raise ModelError(f"{name} has the shape {list(shape)}, which does not fit")
    return shape[axis]


def _numbers(file: TensorFile, part: Part) -> Tensor:
    tensor = part.take(file.read(part.stored))
    if not tensor.is_floating_point():
        raise ModelError(f"{show(part.stored)} holds {tensor.dtype}, not floating-point numbers")
    if not tensor.float().isfinite().all():
        raise ModelError(f"{show(part.stored)} holds infinities or not-a-numbers")
    return tensor
