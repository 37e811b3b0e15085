"""Recognizes files that are not v1.x checkpoints, from the names and shapes of their tensors."""

import re
from collections.abc import Mapping

from sd_core.errors import ModelError
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, show_some

VAE_ALONE = "a VAE alone"

# The first entry that matches any name decides, so more specific kinds come first.
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            "a LoRA (or LyCORIS) adapter",
            r"(^|[._])lora_(up|down|A|B|unet|te\d?|embedding)\b|(^|\.)lora_(unet|te\d?)_|\.(hada|lokr)_w|\.lora\.(up|down)\.",
        ),
        ("a textual-inversion embedding", r"^(string_to_(param|token)\b|emb_params$|clip_[lg]$)"),
        ("a ControlNet", r"^(control_model\.|controlnet_|input_hint_block\.|zero_convs\.)"),
        ("a motion module (AnimateDiff)", r"(^|\.)motion_modules?\."),
        ("a Stable Diffusion 3 checkpoint", r"(^|\.)joint_blocks\."),
        ("a Flux checkpoint", r"(^|\.)double_blocks\."),
        (
            "a Stable Diffusion XL checkpoint",
            r"^conditioner\.embedders\.|^(model\.diffusion_model\.)?label_emb\.",
        ),
        ("a Stable Diffusion 2.x checkpoint", r"^cond_stage_model\.model\."),
        ("a VAE in diffusers' layout", r"^(vae\.)?(encoder|decoder)\.(down_blocks|mid_block|up_blocks)\."),
        ("a UNet in diffusers' layout", r"^(unet\.)?(down_blocks|mid_block|up_blocks)\."),
    )
)

_PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (VAE_ALONE, re.compile(rf"{re.escape(VAE_PREFIX)}|(encoder|decoder)\.(conv_in|conv_out|down|up|mid)\.")),
    ("a UNet alone, without the prefix " + UNET_PREFIX, re.compile(r"(input_blocks|output_blocks)\.")),
    ("a text encoder alone", re.compile(rf"{re.escape(TEXT_PREFIX)}|text_model\.")),
)

# Widths of the prompt's hidden states that only another family has.
CONTEXT_WIDTHS = {1024: "a Stable Diffusion 2.x checkpoint", 2048: "a Stable Diffusion XL checkpoint"}


def recognize(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What the file is, as a noun with its article, or None if it looks like a v1.x checkpoint."""
    for kind, pattern in _KINDS:
        if any(pattern.search(name) for name in shapes):
            return kind
    if any(name.startswith(UNET_PREFIX) for name in shapes):
        return None
    for kind, pattern in _PARTS:
        if any(pattern.match(name) for name in shapes):
            return kind
    if 1 <= len(shapes) <= 2 and all(len(s) in (1, 2) and s[-1] in (768, 1024, 1280) for s in shapes.values()):
        return "a textual-inversion embedding"
    if not shapes:
        return "a file without tensors"
    return f"not recognized; its {len(shapes)} tensors are {show_some(shapes)}"


def refuse(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ModelError, which says what the file is, unless it looks like a v1.x checkpoint."""
    if (kind := recognize(shapes)) is not None:
        raise ModelError(f"not a Stable Diffusion v1.x checkpoint: it is {kind}")
