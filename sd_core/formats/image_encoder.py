"""CLIP's image encoders from files: transformers' layout, and OpenCLIP's own."""

import re
from collections.abc import Hashable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.alone import Part, Parts, Shapes, dimension, read_network, read_shapes
from sd_core.formats.keys import show_some
from sd_core.models.image_encoder import ImageEncoder, ImageEncoderConfig

MAX_LAYERS = 64

HEADS = {1_280: 16, 1_664: 16}
"""By width, where a head is not 64 wide: ViT-H and ViT-bigG."""

QUICK_GELU_WIDTHS = (768, 1_024)
"""Of OpenAI's encoders, ViT-B and ViT-L, whose activation is an approximation."""

NAMES = ((512, 768, "ViT-B"), (768, 1_024, "ViT-L/14"), (1_024, 1_280, "ViT-H/14"), (1_280, 1_664, "ViT-bigG/14"))
"""Encoders by the widths of their embeddings and of their hidden states."""

_OPEN_CLIP = "visual."
_LAYERS = "vision_model.encoder.layers."


def load_image_encoder(path: Path, device: torch.device, dtype: torch.dtype, key: Hashable = None) -> ImageEncoder:
    """The image encoder of a `.safetensors` or `.bin`, with `key`. What else lies in the file is ignored.

    ModelError, which names the file, if it is damaged or holds no CLIP image encoder.
    """
    return read_network(path, device, dtype, partial(understand_image_encoder, key=key))


def understand_image_encoder(shapes: Shapes, key: Hashable = None) -> tuple[partial[ImageEncoder], Parts]:
    """An `Understand`. ModelError as above."""
    parts = encoder_parts(shapes)
    config = encoder_config({name: part.shape(shapes) for name, part in parts.items()})
    return partial(ImageEncoder, config, key), parts


def describe_image_encoder(path: Path) -> ImageEncoderConfig:
    """The architecture of the encoder in a file. ModelError as above."""
    shapes = read_shapes(path)
    try:
        return encoder_config({name: part.shape(shapes) for name, part in encoder_parts(shapes).items()})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def named_encoder(embedding: int | None, width: int | None) -> str:
    """What an encoder of these widths is called; None if one of them is open."""
    for known_embedding, known_width, name in NAMES:
        if embedding in (None, known_embedding) and width in (None, known_width):
            return f"CLIP {name}"
    widths = {"an embedding": embedding, "hidden states": width}
    return "a CLIP image encoder with " + " and ".join(f"{of} of width {each}" for of, each in widths.items() if each)


def encoder_parts(shapes: Shapes) -> dict[str, Part]:
    """The tensors of `ImageEncoder` that a file holds. ModelError if none of its names is an image encoder's."""
    if _OPEN_CLIP + "conv1.weight" in shapes:
        return dict(entry for name in shapes if name.startswith(_OPEN_CLIP) for entry in _open_clip(name))
    parts = {
        name: Part(name)
        for name in shapes
        if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith("position_ids")
    }
    if not parts:
        raise ModelError(f"not a CLIP image encoder; its {len(shapes)} tensors are {show_some(shapes)}")
    return parts


def encoder_config(shapes: Shapes) -> ImageEncoderConfig:
    """The architecture that tensors of these shapes, by name in `ImageEncoder`, belong to. ModelError if there is
    none."""
    patches = "vision_model.embeddings.patch_embedding.weight"
    width, patch = dimension(shapes, patches, 0), dimension(shapes, patches, 3)
    side = round((dimension(shapes, "vision_model.embeddings.position_embedding.weight", 0) - 1) ** 0.5)
    layers = {int(found[1]) for name in shapes if (found := re.match(rf"{re.escape(_LAYERS)}(\d{{1,4}})\.", name))}
    heads = HEADS.get(width, max(1, width // 64))
    if side < 1 or width % heads or not 1 < len(layers) <= MAX_LAYERS:
        raise ModelError(f"an image encoder that is not supported, {len(layers)} layers of width {width}")
    return ImageEncoderConfig(
        width=width,
        layers=len(layers),
        heads=heads,
        mlp_width=dimension(shapes, f"{_LAYERS}0.mlp.fc1.weight", 0),
        patch=patch,
        side=side * patch,
        embedding=dimension(shapes, "visual_projection.weight", 0),
        has_quick_gelu=width in QUICK_GELU_WIDTHS,
    )


_RENAMED = (
    ("class_embedding", "vision_model.embeddings.class_embedding"),
    ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("conv1.", "vision_model.embeddings.patch_embedding."),
    ("ln_pre.", "vision_model.pre_layrnorm."),
    ("ln_post.", "vision_model.post_layernorm."),
    ("transformer.resblocks.", _LAYERS),
)
_INSIDE = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def _open_clip(stored: str) -> list[tuple[str, Part]]:
    """What a tensor of OpenCLIP's layout is here: it keeps queries, keys and values in one matrix."""
    name = stored.removeprefix(_OPEN_CLIP)
    if name == "proj":
        return [("visual_projection.weight", Part(stored, torch.t))]
    for old, new in _RENAMED:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in _INSIDE:
        name = name.replace(old, new)
    joined = re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name)
    if joined is None:
        return [(name, Part(stored))]
    layer, kind = joined.groups()
    return [
        (f"{layer}.self_attn.{letter}_proj.{kind}", Part(stored, partial(_third, index)))
        for index, letter in enumerate("qkv")
    ]


def _third(index: int, joined: Tensor) -> Tensor:
    return joined[index * (len(joined) // 3) : (index + 1) * (len(joined) // 3)]
