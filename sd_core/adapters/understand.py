"""The tensors of an adapter's file -> what they add to the layers of a model."""

import hashlib
import json
import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_core.adapters.apply import Adapter
from sd_core.adapters.bases import V1, base_of
from sd_core.adapters.contents import contents_of
from sd_core.adapters.delta import Delta, Dense, LowRank
from sd_core.adapters.families import Family, decomposed, is_decomposed
from sd_core.adapters.module import Module
from sd_core.adapters.names import TEXT, UNET, Names
from sd_core.adapters.scales import Scales
from sd_core.adapters.source import Source
from sd_core.errors import ModelError, show_some
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet

HASH_KEY = "sshs_model_hash"
"""Metadata of kohya's scripts: the sha256 of the tensors' bytes when the file was written."""

LABEL_DIGITS = 12

FIRST_CONVOLUTION = "input_blocks.0.0"
"""A UNet for inpainting takes more channels there than the UNet that an adapter was trained on."""


def understand(
    source: Source, unet: UNet, text_encoder: CLIPTextEncoder, device: torch.device, dtype: torch.dtype
) -> Adapter:
    """The adapter of a file, on `device` in `dtype`, for networks whose weights are loaded.

    ModelError if the file is for another family of models, if nothing in it fits, or if a tensor is not finite, or of
    a shape that does not fit its layer or the tensors beside it.
    """
    base = base_of(source.shapes, source.metadata)
    if base not in (None, V1):
        raise ModelError(f"it is an adapter for {base}, not for {V1}")
    names, scales = Names.of(unet, text_encoder), Scales.of(source.metadata)
    contents = contents_of(source.shapes, names)
    if not contents.layers:
        raise ModelError(f"none of its {len(source.shapes)} tensors fits this model: {show_some(source.shapes)}")
    deltas: dict[str, dict[str, Delta]] = {UNET: {}, TEXT: {}}
    for (network, name), (family, parts) in contents.layers.items():
        layer = names.layers[network, name]
        shape = tuple(layer.get_parameter("weight").shape)
        module = Module(parts.name, layer, network, parts.stored, source.read, scales, shape)
        narrow = unet.config.out_channels if (network, name) == (UNET, FIRST_CONVOLUTION) else None
        deltas[network][name] = _change(family, module, narrow).to(device, dtype)
    digest = source.digest()
    return Adapter(
        _key(source, digest), deltas[UNET], deltas[TEXT], label=_label(source, digest), ignored=contents.ignored
    )


def _change(family: Family, module: Module, narrow: int | None) -> Delta:
    """A layer's change. If the layer may have more input channels than what was trained, `narrow` is their number."""
    if family.of_norms not in (None, module.is_norm):
        raise module.error(next(iter(module.stored)), f"is of the family {family.name}, which does not fit its layer")
    try:
        return _read(family, module)
    except ModelError:
        if narrow is None or narrow >= module.shape[1]:
            raise
    return widened(_read(family, module.narrowed(narrow)), module.shape[1])


def _read(family: Family, module: Module) -> Delta:
    change = family.read(module)
    return decomposed(change, module) if is_decomposed(module.stored) else change


def widened(change: Delta, inputs: int) -> Delta:
    """A convolution's change, continued by zeros for input channels that it does not know."""
    if isinstance(change, LowRank):
        return replace(change, down=_padded(change.down, inputs))
    return Dense(_padded(change.weight(), inputs), bias=change.bias)


def _padded(kernels: Tensor, inputs: int) -> Tensor:
    return F.pad(kernels, (0, 0, 0, 0, 0, inputs - kernels.shape[1]))


def _label(source: Source, digest: str) -> str:
    """A1111's short hash of the file: what its metadata says, or what it is."""
    said = source.metadata.get(HASH_KEY, "")
    return (said if re.fullmatch(r"[0-9a-fA-F]{64}", said) else digest)[:LABEL_DIGITS]


def _key(source: Source, digest: str) -> str:
    """The content: the same bytes under other names are another adapter, and so are others with another alpha."""
    beside = hashlib.sha256(source.header)
    beside.update(json.dumps(sorted(source.metadata.items())).encode())
    return f"{digest}-{beside.hexdigest()[:32]}"
