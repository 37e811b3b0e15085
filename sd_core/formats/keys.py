"""The tensor names of a v1.x checkpoint: the network that each belongs to, its canonical spelling, and the extras."""

import re
from collections.abc import Iterable

from sd_core.errors import ModelError
from sd_core.errors import show as show
from sd_core.errors import show_some as show_some

TEXT_PREFIX = "cond_stage_model.transformer."
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
EMA_PREFIX = "model_ema."

# Tensors without meaningful values whose presence alone says how the UNet was trained (ComfyUI, SD.Next).
V_PREDICTION_MARKER = "v_pred"
ZERO_SNR_MARKER = "ztsnr"

_INSIDE_TEXT_MODEL = ("embeddings.", "encoder.", "final_layer_norm.")
_INSIDE_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

# Training leaves these beside the weights: CompVis' schedule buffers and losses, averages, ids, markers.
_EXTRA = re.compile(
    rf"""
    (betas | alphas_cumprod(_prev)? | (sqrt|log)_(one_minus_)?(recip(m1)?_)?alphas_cumprod
        | posterior_\w+ | lvlb_weights | logvar | scale_factor | {V_PREDICTION_MARKER} | {ZERO_SNR_MARKER})\Z
    | model_ema\. | loss\. | embedding_manager\. | denoiser\. | callbacks\. | optimizer_states\.
    | first_stage_model\.(loss|model_ema)\.
    | cond_stage_model\.(transformer\.)?logit_scale\Z
    | cond_stage_model\.transformer\.(text_model\.)?text_projection(\.weight)?\Z
    | cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids\Z
    """,
    re.VERBOSE,
)


def is_extra(name: str) -> bool:
    """Whether a checkpoint may hold a tensor of this name although no network has it."""
    return _EXTRA.match(name) is not None


def is_weight(name: str) -> bool:
    """Whether the name belongs to one of the three networks."""
    return name.startswith((TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX)) and not is_extra(name)


def canonical(name: str) -> str:
    """The name as v1-5-pruned-emaonly spells it: older and newer text encoders differ by `text_model.`."""
    if name.startswith(TEXT_PREFIX):
        rest = name.removeprefix(TEXT_PREFIX)
        if rest.startswith(_INSIDE_TEXT_MODEL):
            return f"{TEXT_PREFIX}text_model.{rest}"
    return name


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name, extras left out. ModelError if two stored names have one canonical name."""
    stored_names: dict[str, str] = {}
    for name in names:
        if is_extra(name):
            continue
        other = stored_names.setdefault(canonical(name), name)
        if other != name:
            raise ModelError(f"the file stores one tensor under two names, {show(other)} and {show(name)}")
    return stored_names


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name of a VAE, from a file of its own (`encoder.*`) or from a whole checkpoint."""
    names = list(names)
    prefixed = {name: name for name in names if name.startswith(VAE_PREFIX) and not is_extra(name)}
    return prefixed or {VAE_PREFIX + name: name for name in names if name.startswith(_INSIDE_VAE)}


def ema_name(name: str) -> str:
    """The name of a UNet weight's moving average: `model.a.b` is averaged as `model_ema.ab`, without dots."""
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")
