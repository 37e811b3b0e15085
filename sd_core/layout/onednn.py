"""Products with weights in oneDNN's own layouts, for CPUs, through the operators that torch's compiler uses.

oneDNN reorders a plain weight into such a layout at every call, which for small images takes as long as the product;
and torch computes a plain linear layer with another library, which is slower at most of these sizes.
"""

import ctypes
import platform
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from sd_core.cache import LRU

# Input shapes for which `Kernels` remembers the layout.
MAX_SHAPES = 256


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this machine and this torch multiply packed weights of `dtype`."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    match dtype:
        case torch.float32:
            return True
        case torch.bfloat16:
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case torch.float16:
            return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False


def packed_matrix(weight: Tensor) -> Tensor:
    """A matrix (out_features, in_features) in the layout that `linear` takes, whatever the number of rows."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return packed


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """`F.linear` with a packed matrix, plus `add`."""
    if add is not None:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, add, packed, bias, "add")
    else:
        out = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def gated_linear(x: Tensor, value: Tensor, gate: Tensor, bias: Tensor | None) -> Tensor:
    """The product of x and `value`, times the exact GELU of that of x and `gate`; `bias` holds the biases of both."""
    value_bias, gate_bias = (None, None) if bias is None else bias.chunk(2)
    gated = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gated, value, value_bias, "mul")
    return out


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves over its input: each field holds rows and columns."""

    stride: tuple[int, ...]
    padding: tuple[int, int]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, layer: nn.Conv2d, padding: tuple[int, int]) -> "Geometry":
        """The geometry of a layer with this padding, which may differ from the layer's own."""
        return cls(layer.stride, padding, layer.dilation, layer.groups)


class Kernels:
    """The kernel of one convolution, packed once for each layout that oneDNN asks for.

    The layout depends on the input's shape. A kernel in another layout is reordered at every call, by generic code that
    can take ten times as long as the convolution.
    """

    def __init__(self) -> None:
        self._layouts: list[Tensor] = []
        self._by_input: LRU[tuple[torch.Size, tuple[int, int]], Tensor] = LRU(MAX_SHAPES)

    def __len__(self) -> int:
        return len(self._layouts)

    def packed(self, weight: Tensor, dtype: torch.dtype, shape: torch.Size, geometry: Geometry) -> Tensor:
        """`weight` in `dtype` and in the layout for inputs of `shape` (B, C, H, W)."""
        key = shape, geometry.padding
        known = self._by_input.get(key)
        if known is None:
            known = self._shared(packed_kernel(weight, dtype, shape, geometry))
            self._by_input.put(key, known)
        return known

    def _shared(self, packed: Tensor) -> Tensor:
        """The kernel that is kept in the layout of `packed`: `packed` itself if there is none yet."""
        # Compare contents: oneDNN's descriptions of layouts have padding bytes that are not initialized.
        for kept in self._layouts:
            if torch.equal(raw_bytes(kept), raw_bytes(packed)):
                return kept
        self._layouts.append(packed)
        return packed


def packed_kernel(weight: Tensor, dtype: torch.dtype, shape: torch.Size, geometry: Geometry) -> Tensor:
    """A kernel (out_channels, in_channels, rows, columns) in the layout for inputs of `shape` (B, C, H, W)."""
    plain = weight.detach().to(dtype, memory_format=torch.channels_last)
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        plain, geometry.padding, geometry.stride, geometry.dilation, geometry.groups, shape
    )
    return packed


def raw_bytes(packed: Tensor) -> Tensor:
    """The memory of a packed weight as uint8. It must not be used longer than `packed` exists."""
    memory = ctypes.c_uint8 * torch.ops.mkldnn._nbytes(packed)
    return torch.frombuffer(memory.from_address(torch.ops.mkldnn.data_ptr(packed)), dtype=torch.uint8)


def convolution(
    x: Tensor, packed: Tensor, bias: Tensor | None, geometry: Geometry, add: Tensor | None = None
) -> Tensor:  # (B, C, H, W)
    """The convolution of x, channels_last, with a kernel packed for its shape, plus `add`; channels_last."""
    how = geometry.padding, geometry.stride, geometry.dilation, geometry.groups
    if add is not None:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, add, packed, bias, *how, "add", 1.0, None, [], None
        )
    else:
        out = torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *how, "none", [], "")
    return out
