"""Safetensors checkpoint -> the three networks, ready to run."""

import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sd_core.errors import ModelError
from sd_core.formats.check import meta_networks, networks_shapes, require_equal
from sd_core.formats.detect import Architecture, detect, require_drawable
from sd_core.formats.files import TensorFile, open_safetensors
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, canonical_names, show
from sd_core.formats.parallel import read_parallel
from sd_core.layout.choose import lay_out
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE


@dataclass(frozen=True)
class Networks:
    """The networks of one checkpoint in evaluation mode, and the file's metadata."""

    text_encoder: CLIPTextEncoder
    unet: UNet
    vae: VAE
    architecture: Architecture
    metadata: dict[str, str]

    @property
    def all(self) -> tuple[nn.Module, ...]:
        return self.text_encoder, self.unet, self.vae


def load_networks(path: Path, device: torch.device, dtype: torch.dtype, *, packed: bool = False) -> Networks:
    """The networks of a v1.x `.safetensors`, every weight on `device` in `dtype`.

    With `packed` they are laid out for the device (`sd_core.layout.choose`): weights that their layers cast at
    first use stay as they are stored.

    On the CPU, tensors that keep their stored dtype are views of the memory map (private, copy on write): they become
    resident at first use, and the file may be replaced by a rename but not written in place. All others are read and
    cast one at a time, so that at most one tensor is in memory twice. A GPU receives the tensors as stored, several
    at a time, and casts them itself.
    ModelError if the file is missing, damaged or of another kind, or if its tensors are not exactly those of its
    architecture.
    """
    with open_safetensors(path) as file:
        try:
            architecture, names = _understand(file)
            text_encoder, unet, vae = meta_networks(architecture)
            found = {name: file.tensors[stored].shape for name, stored in names.items()}
            require_equal(found, networks_shapes(text_encoder, unet, vae))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        networks = {TEXT_PREFIX: text_encoder, UNET_PREFIX: unet, VAE_PREFIX: vae}
        kept: set[str] = set()
        if packed:
            for prefix, network in networks.items():
                kept.update(prefix + name for name in lay_out(network, device, dtype))
        if device.type == "cuda":
            entries = {name: file.tensors[stored] for name, stored in names.items()}
            tensors = {name: tensor.to(dtype) for name, tensor in read_parallel(path, entries, device).items()}
        else:
            tensors = _read(file, names, kept, device, dtype)
        metadata = dict(file.metadata)
    for prefix, network in networks.items():
        _assign(network, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    return Networks(text_encoder, unet, vae, architecture, metadata)


def _understand(file: TensorFile) -> tuple[Architecture, dict[str, str]]:
    """The architecture, and canonical name -> stored name of its tensors."""
    architecture = detect(file.shapes, file.metadata)
    require_drawable(architecture)
    names = canonical_names(file.tensors)
    for stored in names.values():
        kind = file.tensors[stored].dtype
        if not kind.is_floating_point:
            raise ModelError(f"{show(stored)} holds {kind}, not floating-point numbers")
    return architecture, names


def _read(
    file: TensorFile, names: dict[str, str], kept: Set[str], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors by canonical name, in `dtype` except those in `kept`, which stay as stored."""
    if hasattr(os, "posix_fadvise"):
        # The kernel then reads ahead the whole file: a network volume serves that far faster than single pages.
        os.posix_fadvise(file.file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    cast = {name for name, stored in names.items() if name not in kept and file.tensors[stored].dtype != dtype}
    # One buffer for all reads: a new one for each would fragment the heap.
    largest = max((file.tensors[names[name]].span_bytes for name in cast), default=0)
    scratch = torch.empty(largest, dtype=torch.uint8)
    tensors: dict[str, Tensor] = {}
    with safe_open(file.path, framework="pt", device="cpu") as mapped:
        for name, stored in names.items():
            # Casting a view would leave the map's pages resident beside the result, so these tensors are read.
            if name in cast:
                tensor = file.read(stored, scratch).to(device, dtype)
            else:
                tensor = mapped.get_tensor(stored).to(device)
            # Old writers did not pad the header, so a view may be misaligned.
            tensors[name] = tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor
    return tensors


def _assign(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    network.load_state_dict(tensors, strict=True, assign=True)
    network.requires_grad_(requires_grad=False).eval()
