"""The tensor names of a v1.x checkpoint: the network that each belongs to, its canonical spelling, and the extras."""

import re
from collections.abc import Collection, Iterable

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
_INSIDE_UNET = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "out.")
_INSIDE_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

# A file that has it holds a UNet: every v1.x UNet begins with this convolution.
FIRST_CONVOLUTION = "input_blocks.0.0.weight"
# Where a file holds the UNet: CompVis', ComfyUI's export of a UNet alone, and no prefix.
UNET_PREFIXES = (UNET_PREFIX, "diffusion_model.", "")

# A weight in eight bits is multiplied by the number of one of these names, in place of its own `.weight`.
_SCALES = (".scale_weight", ".weight_scale")

# Training and tools leave these beside the weights: CompVis' schedule buffers and losses, averages, ids, markers,
# scales of weights in eight bits, adapters that were merged.
_EXTRA = re.compile(
    rf"""
    (betas | alphas_cumprod(_prev)? | (sqrt|log)_(one_minus_)?(recip(m1)?_)?alphas_cumprod
        | posterior_\w+ | lvlb_weights | logvar | scale_factor | {V_PREDICTION_MARKER} | {ZERO_SNR_MARKER})\Z
    | model_ema\. | loss\. | embedding_manager\. | denoiser\. | callbacks\. | optimizer_states\.
    | first_stage_model\.(loss|model_ema)\.
    | cond_stage_model\.(transformer\.)?logit_scale\Z
    | cond_stage_model\.transformer\.(text_model\.)?text_projection(\.weight)?\Z
    | cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids\Z
    | (\w+\.)*(scaled_fp8 | scale_weight | weight_scale | scale_input | input_scale | comfy_quant)\Z
    | (\w+\.)*lora_\w+\.
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
    """Canonical name -> stored name of the weights of the three networks; all other tensors are left out.

    A UNet without its prefix gains it. ModelError if two stored names have one canonical name.
    """
    names = list(names)
    prefix = unet_prefix(names)
    stored_names: dict[str, str] = {}
    for name in names:
        own = _with_prefix(name, prefix)
        if not is_weight(own):
            continue
        other = stored_names.setdefault(canonical(own), name)
        if other != name:
            raise ModelError(f"the file stores one tensor under two names, {show(other)} and {show(name)}")
    return stored_names


def unet_prefix(names: Collection[str]) -> str | None:
    """What the file's names of UNet weights begin with, perhaps nothing; None if it holds no v1.x UNet."""
    return next((prefix for prefix in UNET_PREFIXES if prefix + FIRST_CONVOLUTION in names), None)


def ignored_names(names: Iterable[str], used: Iterable[str]) -> list[str]:
    """The stored names that are neither `used` nor among what training and tools are known to leave."""
    used = set(used)
    return sorted(name for name in names if name not in used and not is_extra(name))


def scale_name(weight: str, names: Collection[str]) -> str | None:
    """The name of the tensor that a stored weight is multiplied by, if the file has one."""
    stem = weight.removesuffix(".weight")
    return next((stem + ending for ending in _SCALES if stem != weight and stem + ending in names), None)


def _with_prefix(name: str, prefix: str | None) -> str:
    """The name with CompVis' prefix, of a file whose UNet has another one."""
    if prefix in (None, UNET_PREFIX):
        return name
    rest = name.removeprefix(prefix)
    return UNET_PREFIX + rest if name.startswith(prefix) and rest.startswith(_INSIDE_UNET) else name


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name of a VAE, from a file of its own (`encoder.*`) or from a whole checkpoint."""
    names = list(names)
    prefixed = {name: name for name in names if name.startswith(VAE_PREFIX) and not is_extra(name)}
    return prefixed or {VAE_PREFIX + name: name for name in names if name.startswith(_INSIDE_VAE)}


def ema_name(name: str) -> str:
    """The name of a UNet weight's moving average: `model.a.b` is averaged as `model_ema.ab`, without dots."""
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")
