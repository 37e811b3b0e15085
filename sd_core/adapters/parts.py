"""Which tensors of a file belong together: those of one layer, each by its part in the layer's change."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sd_core.adapters.names import Layer, Names

# How kohya, LyCORIS and diffusers end the names of tensors.
_ENDINGS = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora.alpha": "alpha",
    "lora_linear_layer.alpha": "alpha",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    **{
        part: part
        for part in (
            *("alpha", "scale", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "on_input", "weight"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("oft_blocks", "oft_diag", "rescale"),
        )
    },
    **{f"{part}.weight": part for part in ("a1", "a2", "b1", "b2", "bm")},
}

# Characters of a name that are read; v1.5's longest have about 120.
MAX_NAME = 1_000

# PEFT may name the adapter within: `lora_A.default.weight`.
_PEFT = re.compile(r"(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.\w+)??(\.(?P<kind>weight|bias))?")
_PEFT_PARTS = {
    ("lora_A", "weight"): "down",
    ("lora_B", "weight"): "up",
    ("lora_B", "bias"): "up_bias",
    ("lora_magnitude_vector", "weight"): "magnitude",
    ("lora_magnitude_vector", None): "magnitude",
}

# diffusers' attention processors: `to_q_lora.down.weight`.
_PROCESSOR = re.compile(r"(?P<layer>.+)_lora\.(?P<part>down\.weight|up\.weight|alpha)")

# The embeddings that a file brings along: `bundle_emb.WORD.string_to_param.*`.
_BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+?)\.(string_to_param\b.*|[^.]+)")


@dataclass(frozen=True)
class Parts:
    """The tensors for one layer: part -> the tensor's name in the file. `name` is the layer's name there."""

    name: str
    stored: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """The tensors of a file by layer. `left` are those of no layer of these networks, or second ones for a part."""

    layers: Mapping[Layer, Parts]
    left: tuple[str, ...]


def split(name: str) -> tuple[str, str] | None:
    """A tensor's name as the layer's name in the file and the part; None if it does not end like an adapter's."""
    if len(name) > MAX_NAME:
        return None
    if match := _PROCESSOR.fullmatch(name):
        return match["layer"], _ENDINGS.get(f"lora.{match['part']}", "alpha")
    if match := _PEFT.fullmatch(name):
        part = _PEFT_PARTS.get((match["part"], match["kind"]))
        return None if part is None else (match["layer"], part)
    pieces = name.rsplit(".", 3)
    for taken in (3, 2, 1):
        part = _ENDINGS.get(".".join(pieces[-taken:])) if len(pieces) > taken else None
        if part is not None:
            return ".".join(pieces[:-taken]), part
    return None


def found_in(stored: Iterable[str], names: Names) -> Found:
    """The tensors of a file by the layers that they are for, without the embeddings that it brings along."""
    parts_of: dict[Layer, dict[str, str]] = {}
    called: dict[Layer, str] = {}
    looked_up: dict[str, Layer | None] = {}
    left: list[str] = []
    for name in stored:
        if _bundled(name):
            continue
        layer_name, part = split(name) or ("", "")
        if layer_name not in looked_up:
            looked_up[layer_name] = names.find(layer_name)
        layer = looked_up[layer_name]
        if layer is None or part in parts_of.setdefault(layer, {}):
            left.append(name)
            continue
        parts_of[layer][part] = name
        called.setdefault(layer, layer_name)
    return Found({layer: Parts(called[layer], parts) for layer, parts in parts_of.items()}, tuple(left))


def bundled_names(stored: Iterable[str]) -> tuple[str, ...]:
    """The words of the embeddings that a file brings along."""
    return tuple(dict.fromkeys(match["word"] for name in stored if (match := _bundled(name))))


def _bundled(name: str) -> re.Match[str] | None:
    return _BUNDLED.fullmatch(name) if len(name) <= MAX_NAME else None
