"""Where the tensors of networks come from: in which file each lies, under which name, and how it is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.files import DTYPE_NAMES, TensorFile
from sd_core.formats.keys import canonical_names, scale_name, show


@dataclass(frozen=True)
class Origin:
    """One tensor of a network: stored under the name `stored` of `file`, used in the shape `shape`.

    If `scale` names another tensor, of one element or one for each row, the values are multiplied by it: weights in
    eight bits bring one ("scaled fp8").
    """

    file: TensorFile
    stored: str
    shape: tuple[int, ...]
    scale: str | None = None

    @classmethod
    def of(cls, file: TensorFile, stored: str, shape: tuple[int, ...] | None = None) -> "Origin":
        """The tensor of this stored name with its scale, in the stored shape unless another one is given.

        ModelError if it or its scale holds anything but floating-point numbers, or if the scale has a wrong shape.
        """
        entry, scale = file.tensors[stored], scale_name(stored, file.tensors)
        for name in (stored, scale):
            if name is None:
                continue
            if not file.tensors[name].dtype.is_floating_point:
                raise ModelError(f"{show(name)} holds {file.tensors[name].dtype}, not floating-point numbers")
            if file.tensors[name].dtype not in DTYPE_NAMES:  # such as 4-bit pairs, which cannot be cast either
                raise ModelError(f"{show(name)} has the dtype {file.tensors[name].dtype}, which is not supported")
        if scale is not None and torch.Size(file.tensors[scale].shape).numel() not in (1, *entry.shape[:1]):
            raise ModelError(f"{show(scale)} has the shape {list(file.tensors[scale].shape)}, not that of a scale")
        return cls(file, stored, entry.shape if shape is None else shape, scale)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values as `read` returns them."""
        return self.file.tensors[self.stored].dtype if self.scale is None else torch.float32

    @property
    def span_bytes(self) -> int:
        return self.file.tensors[self.stored].span_bytes

    def read(self, scratch: Tensor | None = None) -> Tensor:
        """The tensor, in `scratch` if that is given (see `TensorFile.read`) and if it has no scale."""
        return self.scaled(self.file.read(self.stored, scratch))

    def scaled(self, tensor: Tensor) -> Tensor:
        """The stored values in this tensor's shape, multiplied by its scale."""
        if self.scale is None:
            return tensor.reshape(self.shape)
        factors = self.file.read(self.scale).float().to(tensor.device).reshape(-1, *(1,) * (len(self.shape) - 1))
        return tensor.reshape(self.shape).float() * factors


Origins = Mapping[str, Origin]
"""By canonical name."""


def origins_of(file: TensorFile) -> dict[str, Origin]:
    """The weights of a checkpoint in CompVis' layout, whole or in part."""
    return {name: Origin.of(file, stored) for name, stored in canonical_names(file.tensors).items()}


def shapes_of(origins: Origins) -> dict[str, tuple[int, ...]]:
    return {name: origin.shape for name, origin in origins.items()}
