"""Tensors of files -> the memory of a device."""

import os
from collections.abc import Set

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sd_core.formats.files import SAFETENSORS
from sd_core.formats.origins import Origins
from sd_core.formats.parallel import read_parallel


def read_weights(origins: Origins, kept: Set[str], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors by canonical name, all of one file, in `dtype` except those in `kept`, which stay as stored.

    On the CPU, tensors that keep their stored dtype are views of the memory map of a safetensors file. All others are
    read and cast one at a time, so that at most one tensor is in memory twice. A GPU receives the tensors of a
    safetensors file as stored, several at a time, and casts them itself.
    """
    (file,) = {id(origin.file): origin.file for origin in origins.values()}.values()
    is_mappable = file.format == SAFETENSORS
    if device.type == "cuda" and is_mappable:
        entries = {name: file.tensors[origin.stored] for name, origin in origins.items()}
        read = read_parallel(file.path, entries, device)
        return {name: origins[name].scaled(tensor).to(dtype) for name, tensor in read.items()}
    if hasattr(os, "posix_fadvise"):
        # The kernel then reads ahead the whole file: a network volume serves that far faster than single pages.
        os.posix_fadvise(file.file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    mapped = {
        name
        for name, origin in origins.items()
        if is_mappable and origin.scale is None and (name in kept or origin.dtype == dtype)
    }
    # One buffer for all reads: a new one for each would fragment the heap.
    largest = max((origin.span_bytes for name, origin in origins.items() if name not in mapped), default=0)
    scratch = torch.empty(largest, dtype=torch.uint8)
    tensors: dict[str, Tensor] = {}
    for name, origin in origins.items():
        # Casting a view would leave the map's pages resident beside the result, so these tensors are read.
        if name not in mapped:
            to = origin.dtype if name in kept and origin.scale is None else dtype
            tensors[name] = origin.read(scratch).to(device, to, copy=True)
    if mapped:
        with safe_open(file.path, framework="pt", device="cpu") as views:
            for name in mapped:
                tensor = views.get_tensor(origins[name].stored).reshape(origins[name].shape).to(device)
                # Old writers did not pad the header, so a view may be misaligned.
                tensors[name] = tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor
    return tensors


def assign(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Make these tensors, by the network's own names, its parameters, in evaluation mode."""
    network.load_state_dict(tensors, strict=True, assign=True)
    network.requires_grad_(requires_grad=False).eval()
