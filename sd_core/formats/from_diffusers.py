"""diffusers' names of v1.x's tensors -> CompVis', which the networks use.

Source: diffusers, `scripts/convert_diffusers_to_original_stable_diffusion.py`; here for any number of levels and of
residual blocks.
"""

import re
from collections.abc import Iterable

from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX

_OUTSIDE_UNET_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_UNET_RESNETS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_IN_VAE_ATTENTIONS = {
    "group_norm": "norm",
    **{old: new for new in "qkv" for old in (f"to_{new}", {"q": "query", "k": "key", "v": "value"}[new])},
    "to_out.0": "proj_out",
    "proj_attn": "proj_out",
}
_PART = re.compile(
    r"(?:(\w+_blocks)\.(\d{1,3})|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,3})\.(.+)"
)


def unet_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name of a UNet; a name that is none of diffusers' keeps its spelling."""
    names = list(names)
    per_level = _resnets(names, "down_blocks.0.")
    attends = {match[0] for name in names if (match := re.match(r"up_blocks\.\d+\.attentions\.", name))}
    return {UNET_PREFIX + _unet_name(name, per_level, attends): name for name in names}


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name of a VAE."""
    names = list(names)
    levels = len({match[1] for name in names if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))})
    return {VAE_PREFIX + _vae_name(name, levels): name for name in names}


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name of a text encoder; transformers' own names, perhaps without `text_model.`."""
    return {f"{TEXT_PREFIX}text_model.{name.removeprefix('text_model.')}": name for name in names}


def _unet_name(name: str, per_level: int, attends: set[str]) -> str:
    stem, _, ending = name.rpartition(".")
    if stem in _OUTSIDE_UNET_BLOCKS:
        return f"{_OUTSIDE_UNET_BLOCKS[stem]}.{ending}"
    found = _PART.fullmatch(name)
    if found is None:
        return name
    side, level, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    stride = per_level + 1
    if kind == "resnets":
        inner, _, ending = rest.rpartition(".")
        rest = f"{_IN_UNET_RESNETS.get(inner, inner)}.{ending}"
    place = {"resnets": 0, "attentions": 1}.get(kind)
    if side is None and place is not None:
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    if side == "down_blocks" and place is not None:
        return f"input_blocks.{1 + stride * level + index}.{place}.{rest}"
    if side == "up_blocks" and place is not None:
        return f"output_blocks.{stride * level + index}.{place}.{rest}"
    if side == "down_blocks" and kind == "downsamplers":
        return f"input_blocks.{stride * (level + 1)}.0.{rest.replace('conv.', 'op.', 1)}"
    if side == "up_blocks" and kind == "upsamplers":
        after = 2 if f"up_blocks.{level}.attentions." in attends else 1
        return f"output_blocks.{stride * level + per_level}.{after}.{rest}"
    return name


def _vae_name(name: str, levels: int) -> str:
    half, _, inside = name.partition(".")
    stem, _, ending = inside.rpartition(".")
    if half not in ("encoder", "decoder"):
        return name
    if stem == "conv_norm_out":
        return f"{half}.norm_out.{ending}"
    found = _PART.fullmatch(inside)
    if found is None:
        return name
    side, level, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if side is None and kind == "resnets":
        return f"{half}.mid.block_{index + 1}.{rest}"
    if side is None and kind == "attentions":
        inner, _, ending = rest.rpartition(".")
        return f"{half}.mid.attn_{index + 1}.{_IN_VAE_ATTENTIONS.get(inner, inner)}.{ending}"
    up_or_down, number = ("up", levels - 1 - level) if side == "up_blocks" else ("down", level)
    if kind == "resnets":
        return f"{half}.{up_or_down}.{number}.block.{index}.{rest}"
    return f"{half}.{up_or_down}.{number}.{kind.removesuffix('rs')}.{rest}"


def _resnets(names: Iterable[str], block: str) -> int:
    """How many residual blocks a block has."""
    found = re.compile(rf"{re.escape(block)}resnets\.(\d{{1,3}})\.")
    return len({match[1] for name in names if (match := found.match(name))})
