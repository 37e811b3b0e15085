"""Weights in the layout that oneDNN multiplies with, for CPUs: torch's own operators, which its compiler uses too.

A plain weight is brought into that layout anew at every call, which for small pictures takes as long as the product;
and a plain linear layer goes to another library, which is slower at most of these sizes.
"""

import platform
from functools import cache

import torch
from torch import Tensor, nn


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


def packed_matrix(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(weight, None), requires_grad=False)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, add: Tensor | None = None) -> Tensor:
    """`F.linear` with a packed weight, plus `add`."""
    if add is not None:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, add, packed, bias, "add")
    else:
        out = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def gated_linear(x: Tensor, value: Tensor, gate: Tensor, bias: Tensor | None) -> Tensor:
    """The linear layer of the packed matrix `value` times the exact GELU of that of `gate`; `bias` is both's."""
    value_bias, gate_bias = (None, None) if bias is None else bias.chunk(2)
    gated = torch.ops.mkldnn._linear_pointwise(x, gate, gate_bias, "gelu", [], "none")
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, gated, value, value_bias, "mul")
    return out


def packed_convolution(layer: nn.Conv2d, dtype: torch.dtype) -> nn.Parameter:
    """The packed weight, in `dtype`: of a 1x1 convolution, which runs as a linear layer, a matrix."""
    weight = layer.weight.data.to(dtype)
    if is_linear(layer):
        return packed_matrix(weight.flatten(1))
    weight = weight.contiguous(memory_format=torch.channels_last)
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        weight, layer.padding, layer.stride, layer.dilation, layer.groups, None
    )
    return nn.Parameter(packed, requires_grad=False)


def convolution(x: Tensor, packed: Tensor, layer: nn.Conv2d, add: Tensor | None = None) -> Tensor:
    """The layer on x (B, C, H, W) with its packed weight, plus `add`; the answer is channels_last."""
    x = x.contiguous(memory_format=torch.channels_last)
    if is_linear(layer):
        added = None if add is None else add.permute(0, 2, 3, 1)
        return linear(x.permute(0, 2, 3, 1), packed, layer.bias, added).permute(0, 3, 1, 2)
    shape = layer.padding, layer.stride, layer.dilation, layer.groups
    if add is not None:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, add, packed, layer.bias, *shape, "add", 1.0, None, [], None
        )
    else:
        out = torch.ops.mkldnn._convolution_pointwise(x, packed, layer.bias, *shape, "none", [], "")
    return out


def is_linear(layer: nn.Conv2d) -> bool:
    """Whether it maps each pixel by itself: packed for no size of picture, such a convolution is several times slower
    than the linear layer that it is."""
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
