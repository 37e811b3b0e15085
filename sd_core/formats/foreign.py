"""Recognizes files that are not v1.x checkpoints, from the names and shapes of their tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sd_core.errors import ModelError
from sd_core.formats.keys import TEXT_PREFIX, VAE_PREFIX, show_some, unet_prefix


@dataclass(frozen=True)
class Foreign:
    """What a file is, as a noun with its article, and the folder of the volume in which jobs find such files.

    One that is not `is_known` is only described.
    """

    what: str
    folder: str | None = None
    is_known: bool = True

    def __str__(self) -> str:
        return self.what if self.folder is None else f"{self.what}: put it into {self.folder}/"


VAE_ALONE = Foreign("a VAE alone", "vae")
TINY_VAE = Foreign("a tiny autoencoder (TAESD)", "vae")
DIFFUSERS_VAE = Foreign("a VAE in diffusers' layout", "vae")
LORA = Foreign("a LoRA (or LyCORIS) adapter", "loras")
EMBEDDING = Foreign("a textual-inversion embedding", "embeddings")
CONTROLNET = Foreign("a ControlNet", "controlnet")
T2I_ADAPTER = Foreign("a T2I-Adapter", "controlnet")
IP_ADAPTER = Foreign("an IP-Adapter", "ip_adapters")
UPSCALER = Foreign("an upscaler (ESRGAN)", "upscalers")
IMAGE_ENCODER = Foreign("a CLIP image encoder", "clip_vision")
DIFFUSERS_UNET = Foreign("a UNet in diffusers' layout; `python -m builder convert FOLDER DST` takes its whole folder")

VAES = (VAE_ALONE, TINY_VAE, DIFFUSERS_VAE)


def _family(name: str) -> Foreign:
    return Foreign(f"a {name} checkpoint")


SDXL, SD2 = _family("Stable Diffusion XL"), _family("Stable Diffusion 2.x")

# Adapters leave tensors of these names in checkpoints that they were merged into.
_LEFTOVERS: tuple[tuple[Foreign, str], ...] = (
    (IP_ADAPTER, r"^(ip_adapter|image_proj|image_proj_model)\."),
    (
        LORA,
        r"(^|[._])lora_(up|down|mid|A|B|unet|te\d?|embedding)\b|(^|\.)(lora|lycoris|oft)_(unet|te\d?)?_|[._]lora\.(up|down)\."
        r"|\.(hada|lokr)_[wt]|\.oft_(blocks|diag)$|\.(a1|b1)\.weight$|\.dora_scale$|^lycoris_|\.(w_norm|diff_b)$",
    ),
    (EMBEDDING, r"^(string_to_(param|token)\b|emb_params$|clip_[lg]$)"),
)

# The first entry that matches any name decides, so more specific kinds come first.
_KINDS: tuple[tuple[Foreign, str], ...] = (
    (Foreign("a ControlLLLite (for Stable Diffusion XL)"), r"^lllite_"),
    (Foreign("a motion module (AnimateDiff)"), r"(^|\.)motion_modules?\."),
    (CONTROLNET, r"^(control_model\.|controlnet_|input_hint_block\.|zero_convs\.|lora_controlnet$)"),
    (T2I_ADAPTER, r"^(adapter\.)?(body\.\d+\.(in_conv|block1|block2|skep|resnets)\b|body\.\d+\.body\.\d+\.block)"),
    (Foreign("a T2I-Adapter for styles, which is not supported"), r"^transformer_layes\."),
    (UPSCALER, r"^((params(_ema)?\.)?(RRDB_trunk\.|body\.\d+\.rdb\d\.|conv_hr\.)|model\.1\.sub\.)"),
    (_family("Stable Diffusion 3"), r"(^|\.)joint_blocks\."),
    (_family("Chroma"), r"(^|\.)distilled_guidance_layer\."),
    (_family("Hunyuan Video"), r"(^|\.)txt_in\.individual_token_refiner\."),
    (_family("Flux"), r"(^|\.)double_blocks\.|(^|\.)single_transformer_blocks\."),
    (_family("Stable Cascade"), r"(^|\.)(clip_txt(_pooled)?_mapper|clip_mapper|effnet_mapper)\."),
    (_family("Wan"), r"(^|\.)(blocks\.\d+\.cross_attn\.norm_[qk]|text_embedding\.0|time_projection\.1)\.weight$"),
    (_family("PixArt"), r"(^|\.)(t_block\.1|y_embedder\.y_proj\.fc1)\.weight$|(^|\.)adaln_single\."),
    (_family("Hunyuan DiT"), r"(^|\.)mlp_t5\."),
    (_family("AuraFlow"), r"(^|\.)double_layers\."),
    (_family("Lumina or Z-Image"), r"(^|\.)(noise_refiner|cap_embedder)\."),
    (_family("Qwen-Image"), r"(^|\.)transformer_blocks\.\d+\.(img_mod|txt_mod)\."),
    (_family("Stable Video Diffusion"), r"(^|\.)time_(mixer|stack)\."),
    (SDXL, r"^conditioner\.embedders\.|(^|^model\.diffusion_model\.|^diffusion_model\.)label_emb\.|^add_embedding\."),
    (SD2, r"^cond_stage_model\.model\."),
    (Foreign("a GLIGEN checkpoint"), r"(^|\.)(position_net|fuser)\."),
    (TINY_VAE, r"^(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.(conv\.\d+\.)?(weight|bias)$|^3\.conv\.[024]\.weight$"),
    (DIFFUSERS_VAE, r"^(vae\.)?(encoder|decoder)\.(down_blocks|mid_block|up_blocks)\."),
    (DIFFUSERS_UNET, r"^(unet\.)?(down_blocks|mid_block|up_blocks)\."),
    (IMAGE_ENCODER, r"^(vision_model\.|visual\.)"),
    (Foreign("a hypernetwork, which is not supported"), r"^(320|640|768|1280)\.\d+\.(linear\.|linear\d\.)"),
)

_PARTS: tuple[tuple[Foreign, str], ...] = (
    (VAE_ALONE, rf"{re.escape(VAE_PREFIX)}|(encoder|decoder)\.(conv_in|conv_out|down|up|mid)\."),
    (Foreign("a text encoder alone"), rf"{re.escape(TEXT_PREFIX)}|text_model\.|clip_l\.transformer\.|text_encoders\."),
    (
        Foreign("a T5 text encoder"),
        r"(encoder\.)?(block\.0\.layer\.0\.SelfAttention\.|shared\.weight$)|encoder\.block\.",
    ),
)

# Widths of the prompt's hidden states that only another family has.
CONTEXT_WIDTHS = {1024: SD2.what, 2048: SDXL.what}

_EMBEDDING_WIDTHS = (768, 1024, 1280)


def recognize(shapes: Mapping[str, tuple[int, ...]]) -> Foreign | None:
    """What the file is, or None if it looks like a v1.x checkpoint or its UNet."""
    holds_unet = unet_prefix(shapes) is not None
    for kind, pattern in (*(() if holds_unet else _LEFTOVERS), *_KINDS):
        found = re.compile(pattern)
        if any(found.search(name) for name in shapes):
            return kind
    if holds_unet or any(name.startswith("model.diffusion_model.") for name in shapes):
        return None
    for kind, pattern in _PARTS:
        found = re.compile(pattern)
        if any(found.match(name) for name in shapes):
            return kind
    if 1 <= len(shapes) <= 2 and all(len(s) in (1, 2) and s[-1] in _EMBEDDING_WIDTHS for s in shapes.values()):
        return EMBEDDING
    if not shapes:
        return Foreign("a file without tensors", is_known=False)
    return Foreign(f"not recognized; its {len(shapes)} tensors are {show_some(shapes)}", is_known=False)


def refuse(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ModelError, which says what the file is, unless it looks like a v1.x checkpoint."""
    if (kind := recognize(shapes)) is not None:
        raise ModelError(f"not a Stable Diffusion v1.x checkpoint: it is {kind}")
