"""The names that files have for the layers of a UNet and a text encoder.

"_" within a name and "_" between names look the same in kohya's spelling, so names are never parsed: all spellings are
listed once, from the layers of the networks themselves, and looked up.
Sources: kohya-ss/sd-scripts networks/lora.py, diffusers utils/state_dict_utils.py, ComfyUI comfy/lora.py,
AUTOMATIC1111 extensions-builtin/Lora/networks.py, OneTrainer's convert_sd_lora.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.layers import Conv2d, GatedLinear, Linear
from sd_core.models.unet import UNet, UNetConfig

UNET, TEXT = "unet", "text"

Layer = tuple[str, str]
"""Network (UNET or TEXT) and the layer's name there, as `named_modules` spells it."""

# Prefixes before names whose parts are joined by "_", and before names whose parts are joined by ".".
_JOINED = {
    UNET: ("lora_unet_", "lycoris_", "lycoris_unet_", "oft_unet_", "lora_prior_unet_"),
    TEXT: ("lora_te_", "lora_te1_", "lycoris_te_", "lycoris_te1_", "oft_te_", "lora_prior_te_"),
}
_DOTTED = {
    UNET: (
        *("", "unet.", "lora_unet.", "diffusion_model.", "model.diffusion_model."),
        *("base_model.model.", "base_model.model.unet.", "unet.base_model.model."),
    ),
    TEXT: (
        *("", "text_encoder.", "lora_te.", "lora_te1.", "clip_l.", "clip_l.transformer."),
        *("text_encoders.clip_l.", "text_encoders.clip_l.transformer.", "cond_stage_model.transformer."),
        *("base_model.model.", "base_model.model.text_encoder.", "text_encoder.base_model.model."),
    ),
}

# Our residual block's layers, and diffusers' names for them.
_IN_RESIDUAL_BLOCKS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

# Layers of attentions whose names older files write otherwise: diffusers' attention processors in both networks.
_OF_PROCESSORS = {
    ".to_q": (".processor.to_q",),
    ".to_k": (".processor.to_k",),
    ".to_v": (".processor.to_v",),
    ".to_out.0": (".to_out", ".processor.to_out", ".processor.to_out.0"),
    ".q_proj": (".to_q",),
    ".k_proj": (".to_k",),
    ".v_proj": (".to_v",),
    ".out_proj": (".to_out", ".to_out.0"),
}


@dataclass(frozen=True)
class Names:
    """The layers that a file may name, under every spelling."""

    layers: dict[Layer, nn.Module] = field(repr=False)
    _dotted: dict[str, list[Layer]] = field(repr=False)
    _joined: dict[str, list[Layer]] = field(repr=False)

    @classmethod
    def of(cls, unet: UNet, text_encoder: CLIPTextEncoder) -> "Names":
        """All names of two networks, which may be on the meta device."""
        layers: dict[Layer, nn.Module] = {}
        dotted: dict[str, list[Layer]] = {}
        for network, module in ((UNET, unet), (TEXT, text_encoder)):
            spellings = _diffusers_prefixes(unet.config) if network == UNET else []
            for name, layer in module.named_modules():
                if isinstance(layer, Linear | GatedLinear | Conv2d | nn.GroupNorm | nn.LayerNorm):
                    layers[network, name] = layer
                    for spelled in _spelled(name, spellings):
                        dotted.setdefault(spelled, []).append((network, name))
        joined: dict[str, list[Layer]] = {}
        for spelled, found in dotted.items():
            joined.setdefault(spelled.replace(".", "_"), []).extend(found)
        return cls(layers, dotted, joined)

    def find(self, name: str) -> Layer | None:
        """The layer that a file calls `name`, without the name of a tensor at its end; None if there is none."""
        for table, prefixes in ((self._dotted, _DOTTED), (self._joined, _JOINED)):
            for network, spelled in prefixes.items():
                for prefix in spelled:
                    found = table.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
                    for layer in found or ():
                        if layer[0] == network:
                            return layer
        return None


def diffusers_name(name: str, config: UNetConfig) -> str:
    """diffusers' name for a layer of a UNet of this architecture."""
    return list(_spelled(name, _diffusers_prefixes(config)))[-1]


def _spelled(name: str, prefixes: list[tuple[str, str]]) -> Iterator[str]:
    """All names of a layer, joined by dots, its own first; those of attentions' processors come before diffusers'."""
    both = [name]
    for own, theirs in prefixes:
        if name.startswith(own):
            rest = name.removeprefix(own)
            both.append(theirs + _IN_RESIDUAL_BLOCKS.get(rest, rest))
            break
    if name.startswith("text_model."):
        both.append(name.removeprefix("text_model."))
    for each in both:
        for own, others in _OF_PROCESSORS.items():
            if each.endswith(own):
                yield from (each.removesuffix(own) + other for other in others)
    yield from both


def _diffusers_prefixes(config: UNetConfig) -> list[tuple[str, str]]:
    """Beginnings of names in our UNet (CompVis' names), and what they begin with in diffusers."""
    levels, blocks = len(config.channels), config.num_res_blocks
    prefixes = [
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("middle_block.0.", "mid_block.resnets.0."),
        ("middle_block.1.", "mid_block.attentions.0."),
        ("middle_block.2.", "mid_block.resnets.1."),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    ]
    stage = 1
    for level in range(levels):
        for block in range(blocks):
            prefixes.append((f"input_blocks.{stage}.0.", f"down_blocks.{level}.resnets.{block}."))
            prefixes.append((f"input_blocks.{stage}.1.", f"down_blocks.{level}.attentions.{block}."))
            stage += 1
        if level + 1 < levels:
            prefixes.append((f"input_blocks.{stage}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
            stage += 1
    stage = 0
    for index, level in enumerate(reversed(range(levels))):
        for block in range(blocks + 1):
            attends = level in config.attention_levels
            if level > 0 and block == blocks:
                upsampler = 2 if attends else 1
                prefixes.append((f"output_blocks.{stage}.{upsampler}.", f"up_blocks.{index}.upsamplers.0."))
            prefixes.append((f"output_blocks.{stage}.0.", f"up_blocks.{index}.resnets.{block}."))
            prefixes.append((f"output_blocks.{stage}.1.", f"up_blocks.{index}.attentions.{block}."))
            stage += 1
    return prefixes
