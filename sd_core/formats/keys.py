"""The names in a v1.x checkpoint: the network of each, its one spelling, and what is no weight."""

import re
from collections.abc import Iterable

from sd_core.errors import ModelError

TEXT_PREFIX = "cond_stage_model.transformer."
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
EMA_PREFIX = "model_ema."

_INSIDE_TEXT_MODEL = ("embeddings.", "encoder.", "final_layer_norm.")
_INSIDE_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

# What training leaves beside the weights: CompVis' schedule buffers and losses, averages, ids.
_EXTRA = re.compile(
    r"""
    (betas | alphas_cumprod(_prev)? | (sqrt|log)_(one_minus_)?(recip(m1)?_)?alphas_cumprod
        | posterior_\w+ | lvlb_weights | logvar | scale_factor)\Z
    | model_ema\. | loss\. | embedding_manager\. | denoiser\. | callbacks\. | optimizer_states\.
    | first_stage_model\.(loss|model_ema)\.
    | cond_stage_model\.(transformer\.)?logit_scale\Z
    | cond_stage_model\.transformer\.(text_model\.)?text_projection(\.weight)?\Z
    | cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids\Z
    """,
    re.VERBOSE,
)


def is_extra(name: str) -> bool:
    """Whether a checkpoint may carry this name although no network has it."""
    return _EXTRA.match(name) is not None


def is_weight(name: str) -> bool:
    """Whether the name lies inside one of the three networks."""
    return name.startswith((TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX)) and not is_extra(name)


def canonical(name: str) -> str:
    """The name as v1-5-pruned-emaonly spells it: older and newer text encoders differ by `text_model.`."""
    if name.startswith(TEXT_PREFIX):
        rest = name.removeprefix(TEXT_PREFIX)
        if rest.startswith(_INSIDE_TEXT_MODEL):
            return f"{TEXT_PREFIX}text_model.{rest}"
    return name


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name of all but the extras; ModelError where two names mean one tensor."""
    spelled: dict[str, str] = {}
    for name in names:
        if is_extra(name):
            continue
        other = spelled.setdefault(canonical(name), name)
        if other != name:
            raise ModelError(f"the file stores one tensor under two names, {show(other)} and {show(name)}")
    return spelled


def vae_names(names: Iterable[str]) -> dict[str, str]:
    """Canonical name -> stored name of a file's VAE, which stands alone (`encoder.*`) or in a checkpoint."""
    names = list(names)
    prefixed = {name: name for name in names if name.startswith(VAE_PREFIX) and not is_extra(name)}
    return prefixed or {VAE_PREFIX + name: name for name in names if name.startswith(_INSIDE_VAE)}


def ema_name(name: str) -> str:
    """A UNet weight's average: LitEma keeps `diffusion_model.x.y` as `model_ema.diffusion_modelxy`."""
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


def show(name: str, limit: int = 120) -> str:
    """A name fit for a message: printable, on one line, not endless."""
    text = ascii(name[: limit + 1])[1:-1]
    return text if len(text) <= limit else text[:limit] + "..."


def show_some(names: Iterable[str], limit: int = 3) -> str:
    """The first few of some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(show(name) for name in names[:limit]) + more
