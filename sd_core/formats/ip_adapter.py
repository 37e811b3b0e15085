"""IP-Adapter's files: base, light, plus, plus face and full face, recognized by the shapes of their tensors."""

import re
from collections.abc import Hashable
from functools import partial
from pathlib import Path

import torch

from sd_core.errors import ModelError
from sd_core.formats.alone import Part, Parts, Shapes, dimension, read_network
from sd_core.formats.foreign import CONTEXT_WIDTHS
from sd_core.formats.keys import show_some
from sd_core.models.ip_adapter import IPAdapter, IPAdapterConfig, ResamplerConfig

HEAD = 64
"""The width of a resampler's heads."""

MAX_ATTENTIONS, MAX_DEPTH = 128, 32

_PROJECTION, _ATTENTIONS = "image_proj.", "ip_adapter."
_KEYS = re.compile(r"ip_adapter\.(\d{1,4})\.to_k_ip\.weight")
_LAYER = re.compile(r"image_proj\.layers\.(\d{1,4})\.")
_FACE_ID = re.compile(r"image_proj\.(perceiver_resampler|net|pos_embed)\.|.*\.to_(q|k|v|out)_lora\.")


def load_ip_adapter(path: Path, device: torch.device, dtype: torch.dtype, key: Hashable = None) -> IPAdapter:
    """The adapter of a `.safetensors` or `.bin`, with `key`.

    A `.bin` is read by the allow-list reader, which runs nothing of it. ModelError, which names the file, if it is
    damaged, or not an IP-Adapter for v1.x that reads images alone.
    """
    return read_network(path, device, dtype, partial(understand_ip_adapter, key=key))


def understand_ip_adapter(shapes: Shapes, key: Hashable = None) -> tuple[partial[IPAdapter], Parts]:
    """An `Understand`. ModelError as above."""
    parts = {name: Part(name) for name in shapes if name.startswith((_PROJECTION, _ATTENTIONS))}
    return partial(IPAdapter, adapter_config(shapes), key), parts


def adapter_config(shapes: Shapes) -> IPAdapterConfig:
    """The adapter that tensors of these shapes belong to. ModelError, which says what else they are."""
    numbers = sorted(int(found[1]) for name in shapes if (found := _KEYS.fullmatch(name)))
    if not numbers or not any(name.startswith(_PROJECTION) for name in shapes):
        raise ModelError(f"not an IP-Adapter; its {len(shapes)} tensors are {show_some(shapes)}")
    if any(_FACE_ID.match(name) for name in shapes) or _is_face_id(shapes):
        raise ModelError(
            "an IP-Adapter FaceID, which needs a face's embedding that only insightface makes; it is not supported"
        )
    context_dim = dimension(shapes, f"ip_adapter.{numbers[0]}.to_k_ip.weight", 1)
    if context_dim in CONTEXT_WIDTHS:
        family = CONTEXT_WIDTHS[context_dim].removeprefix("a ").removesuffix(" checkpoint")
        raise ModelError(f"an IP-Adapter for {family}, not for v1.x")
    if numbers != list(range(1, 2 * len(numbers), 2)) or len(numbers) > MAX_ATTENTIONS:
        raise ModelError(f"its attentions are numbered {numbers[:4]}..., not 1, 3, 5, ... as in a v1.x UNet")
    attentions = tuple(dimension(shapes, f"ip_adapter.{number}.to_k_ip.weight", 0) for number in numbers)
    if "image_proj.proj.weight" in shapes:
        outputs, image_width = (dimension(shapes, "image_proj.proj.weight", axis) for axis in (0, 1))
        return IPAdapterConfig("base", outputs // context_dim, context_dim, image_width, attentions)
    if "image_proj.proj.3.weight" in shapes:
        return IPAdapterConfig("full", 0, context_dim, dimension(shapes, "image_proj.proj.0.weight", 1), attentions)
    tokens, image_width = dimension(shapes, "image_proj.latents", 1), dimension(shapes, "image_proj.proj_in.weight", 1)
    return IPAdapterConfig("plus", tokens, context_dim, image_width, attentions, _resampler(shapes))


def _is_face_id(shapes: Shapes) -> bool:
    """Whether tokens are made of a face's embedding: by two layers, normalized after them."""
    return "image_proj.proj.2.weight" in shapes and "image_proj.norm.weight" in shapes


def _resampler(shapes: Shapes) -> ResamplerConfig:
    depth = len({found[1] for name in shapes if (found := _LAYER.match(name))})
    inner = dimension(shapes, "image_proj.layers.0.0.to_q.weight", 0)
    if inner % HEAD or depth > MAX_DEPTH:
        raise ModelError(f"a resampler that is not supported, {depth} layers of width {inner}")
    return ResamplerConfig(
        width=dimension(shapes, "image_proj.latents", 2),
        depth=depth,
        heads=inner // HEAD,
        inner=inner,
        mlp_width=dimension(shapes, "image_proj.layers.0.1.1.weight", 0),
    )
