"""Which family of models a file was made for, from the names and shapes of its tensors and its metadata."""

import re
from collections.abc import Mapping

from sd_core.adapters.parts import MAX_NAME

V1 = "Stable Diffusion v1.x"

# Names that only other families have.
_NAMES = (
    ("Stable Diffusion XL", re.compile(r"lora_te2_|^text_encoder_2\.|^clip_g\.|text_encoders\.clip_g\.|add_embedding")),
    ("Flux", re.compile(r"double_blocks|single_blocks|single_transformer_blocks")),
    ("Stable Diffusion 3", re.compile(r"joint_blocks|^transformer\.transformer_blocks\.\d+\.attn\.")),
    ("Stable Cascade", re.compile(r"^lora_prior_unet_(down|up)_blocks_\d+_\d+_")),
)

# What the keys and values of a prompt are read from, and the widths that only other families have.
_READS_PROMPT = re.compile(r"attn2[._](processor\.)?to_[kv]\b.*(down|lora_A)|attn2[._](processor\.)?to_[kv]_lora\.down")
_WIDTHS = {1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}

# What kohya's scripts and the model specification call their bases.
_KEYS = ("ss_base_model_version", "modelspec.architecture")
_BASES = (
    (re.compile(r"sdxl|stable-diffusion-xl"), "Stable Diffusion XL"),
    (re.compile(r"sd_?v?2|stable-diffusion-v2"), "Stable Diffusion 2.x"),
    (re.compile(r"sd_?3|stable-diffusion-3"), "Stable Diffusion 3"),
    (re.compile(r"flux"), "Flux"),
    (re.compile(r"sd_?v?1|stable-diffusion-v1"), V1),
)


def base_of(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """The family of models that an adapter is for; None if nothing in the file says it."""
    shapes = {name: shape for name, shape in shapes.items() if len(name) <= MAX_NAME}
    for base, pattern in _NAMES:
        if any(pattern.search(name) for name in shapes):
            return base
    for name, shape in shapes.items():
        if len(shape) > 1 and shape[1] in _WIDTHS and _READS_PROMPT.search(name):
            return _WIDTHS[shape[1]]
    for key in _KEYS:
        for pattern, base in _BASES:
            if pattern.match(metadata.get(key, "")[:MAX_NAME].casefold()):
                return base
    return "Stable Diffusion 2.x" if metadata.get("ss_v2", "").casefold() == "true" else None
