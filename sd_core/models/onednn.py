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


def packed_linear(layer: nn.Linear) -> nn.Parameter:
    return nn.Parameter(torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, None), requires_grad=False)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with a packed weight."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


def packed_convolution(layer: nn.Conv2d) -> nn.Parameter:
    weight = layer.weight.data.contiguous(memory_format=torch.channels_last)
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        weight, layer.padding, layer.stride, layer.dilation, layer.groups, None
    )
    return nn.Parameter(packed, requires_grad=False)


def convolution(x: Tensor, packed: Tensor, layer: nn.Conv2d) -> Tensor:
    """The layer on x (B, C, H, W) with its packed weight; the answer is channels_last."""
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x.contiguous(memory_format=torch.channels_last),
        packed,
        layer.bias,
        layer.padding,
        layer.stride,
        layer.dilation,
        layer.groups,
        "none",
        [],
        "",
    )
    return out
