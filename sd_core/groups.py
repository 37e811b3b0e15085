"""Groups of a request's fields, each a base of `sd_core.request.Request`; a field is one line here or there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sd_core.checks import plain
from sd_core.fields import ToText, option
from sd_core.nested import FreeU, Hires, Outpaint

MAX_SEED = 2**63 - 1
MASKED = ("mask", "outpaint")
FILLS = ("fill", "original", "latent_noise", "latent_nothing")
AREA_LABELS = (("Whole picture", "whole"), ("Only masked", "masked"))


def _if_set(name: str, default: object) -> ToText:
    """The text of a field that an infotext omits at its default."""

    def to_text(request: Any) -> str | None:
        value = getattr(request, name)
        return None if value == default else plain(value) if isinstance(value, float) else str(value)

    return to_text


def _rng_to_text(request: Any) -> str:
    return str(request.rng.upper())


def _rng_from_text(text: str) -> Mapping[str, str]:
    return {"rng": text.lower()}


def _delta_to_text(request: Any) -> str | None:
    return str(request.eta_noise_seed_delta) if request.eta_noise_seed_delta else None


def _variation_seed_to_text(request: Any) -> str | None:
    return str(request.variation_seed) if request.variation_strength > 0 else None


def _variation_to_text(request: Any) -> str | None:
    return plain(request.variation_strength) if request.variation_strength > 0 else None


def _outpaint_to_text(request: Any) -> str:
    assert request.outpaint is not None  # a field without a value has no text
    return " ".join(f"{side} {pixels}" for side, pixels in vars(request.outpaint).items() if pixels)


def _outpaint_from_text(text: str) -> Mapping[str, Mapping[str, int]]:
    words = text.split()
    return {"outpaint": {side: int(pixels) for side, pixels in zip(words[::2], words[1::2], strict=True)}}


@dataclass(frozen=True, kw_only=True)
class Inpainting:
    """The masked part of an image, and how an image comes to its size."""

    resize_mode: str = option(
        "stretch",
        choices=("stretch", "crop", "fill", "latent"),
        spellings=tuple(enumerate(("stretch", "crop", "fill", "latent"))),
        label="Resize mode",
        to_text=lambda request: None if request.resize_mode == "stretch" else request.resize_mode,
        acts_with=("image",),
        meaning="how an image comes to `width` and `height`; AUTOMATIC1111's 0..3 are accepted",
    )
    mask: np.ndarray | None = option(
        None,
        aliases=("mask_image", "mask_url"),
        private=True,
        shown=False,
        meaning="white is repainted, black is kept; needs an image; transparent pixels are black",
    )
    mask_blur: int = option(
        4,
        low=0,
        high=64,
        label="Mask blur",
        acts_with=MASKED,
        meaning="pixels; softens the mask for repainting, so that seams are smooth",
    )
    mask_blur_x: int | None = option(None, filled="`mask_blur`", low=0, high=64, label="Mask blur X", acts_with=MASKED)
    mask_blur_y: int | None = option(None, filled="`mask_blur`", low=0, high=64, label="Mask blur Y", acts_with=MASKED)
    mask_invert: bool = option(
        default=False,
        aliases=("inpainting_mask_invert",),
        spellings=((0, False), (1, True)),
        label="Mask mode",
        to_text=lambda request: "Inpaint not masked" if request.mask_invert else None,
        from_text=lambda text: {"mask_invert": text == "Inpaint not masked"},
        acts_with=("mask",),
        meaning="true: black is repainted, white is kept",
    )
    inpaint_fill: str = option(
        "original",
        choices=FILLS,
        spellings=(*enumerate(FILLS), *((fill.replace("_", " "), fill) for fill in FILLS[2:])),
        aliases=("inpainting_fill", "masked_content"),
        label="Masked content",
        to_text=lambda request: None if request.inpaint_fill == "original" else request.inpaint_fill.replace("_", " "),
        from_text=lambda text: {"inpaint_fill": text.replace(" ", "_")},
        acts_with=MASKED,
        meaning="what the masked part starts from; AUTOMATIC1111's 0..3 are accepted",
    )
    inpaint_area: str = option(
        "whole",
        choices=("whole", "masked"),
        spellings=((False, "whole"), (True, "masked"), (0, "whole"), (1, "masked"), *AREA_LABELS),
        aliases=("inpaint_full_res", "only_masked"),
        label="Inpaint area",
        to_text=lambda request: "Only masked" if request.inpaint_area == "masked" else None,
        from_text=lambda text: {"inpaint_area": dict(AREA_LABELS).get(text, text)},
        acts_with=MASKED,
        meaning="masked: the masked part is repainted at `width` x `height` and put back into the image as it was sent",
    )
    inpaint_padding: int = option(
        32,
        low=0,
        high=512,
        aliases=("inpaint_full_res_padding", "padding_mask_crop"),
        label="Masked area padding",
        to_text=lambda request: str(request.inpaint_padding) if request.inpaint_area == "masked" else None,
        acts_with=MASKED,
        meaning="pixels around the masked part that belong to it; `padding_mask_crop` sets `inpaint_area` too",
    )
    outpaint: Outpaint | None = option(
        None,
        label="Outpaint",
        to_text=_outpaint_to_text,
        from_text=_outpaint_from_text,
        acts_with=("image",),
        meaning="pixels by which the image grows beyond `width` and `height`; the new border is repainted",
    )


@dataclass(frozen=True, kw_only=True)
class Refining:
    """What changes plain sampling."""

    strength_steps: str = option(
        "scaled",
        choices=("scaled", "exact"),
        acts_with=("image",),
        meaning="scaled: int(steps x strength) steps; exact: `steps` steps whatever the strength",
    )
    hires: Hires | None = option(None, meaning="a second pass at a larger size")
    tiling: bool = option(
        default=False, label="Tiling", to_text=_if_set("tiling", default=False), meaning="seamless in both directions"
    )
    guidance_rescale: float = option(
        0.0,
        low=0,
        high=1,
        label="Guidance rescale",
        to_text=_if_set("guidance_rescale", 0),
        meaning="how far guidance keeps the prediction's standard deviation; 0: not at all",
    )
    pag_scale: float = option(
        0.0,
        low=0,
        high=20,
        label="PAG scale",
        to_text=_if_set("pag_scale", 0),
        meaning="perturbed attention guidance in the middle block; 0: off, else one more row",
    )
    freeu: FreeU | None = option(None, meaning="reweights the coarsest levels; `{}`: its authors' factors for v1.5")
    guidance_start: float = option(
        0.0,
        low=0,
        high=1,
        label="Guidance start",
        to_text=_if_set("guidance_start", 0),
        meaning="fraction of the steps before guidance begins; until then an image takes one row",
    )
    guidance_end: float = option(
        1.0,
        low=0,
        high=1,
        label="Guidance end",
        to_text=_if_set("guidance_end", 1),
        meaning="fraction of the steps after which guidance ends",
    )
    deepcache: int = option(
        1,
        low=1,
        high=5,
        label="DeepCache interval",
        to_text=_if_set("deepcache", 1),
        meaning="the whole UNet runs once in so many steps, in the others its outermost block only; changes the image",
    )
    tome_ratio: float = option(
        0.0,
        low=0,
        high=0.75,
        label="Token merging ratio",
        to_text=_if_set("tome_ratio", 0),
        meaning="fraction of the tokens that is merged before self-attention; changes the image",
    )


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise, and options that only some samplers have."""

    eta: float | None = option(
        None, filled="the sampler's own", low=0, high=1, label="Eta", meaning="share of fresh noise; see below"
    )
    s_churn: float | None = option(
        None, filled="0", low=0, high=1_000, label="Sigma churn", meaning="noise added before each step; see below"
    )
    s_tmin: float | None = option(
        None, filled="0", low=0, high=1_000_000, label="Sigma tmin", meaning="lowest sigma with churn"
    )
    s_tmax: float | None = option(
        None, filled="no limit", low=0, high=1_000_000, label="Sigma tmax", meaning="highest sigma with churn"
    )
    s_noise: float | None = option(
        None, filled="1", low=0, high=10, label="Sigma noise", meaning="factor of the noise that a sampler adds"
    )
    rng: str = option(
        "cpu",
        choices=("cpu", "nv"),
        label="RNG",
        to_text=_rng_to_text,
        from_text=_rng_from_text,
        meaning="`nv`: the numbers that an NVIDIA GPU draws, on any device",
    )
    eta_noise_seed_delta: int = option(
        0,
        low=0,
        high=MAX_SEED,
        label="ENSD",
        to_text=_delta_to_text,
        meaning="added to the seed for the sampler's own numbers",
    )
    variation_seed: int | None = option(
        None,
        filled="random below 2^32",
        low=-1,
        high=MAX_SEED,
        aliases=("subseed",),
        label="Variation seed",
        to_text=_variation_seed_to_text,
        meaning="-1 or null: random; image i has variation seed + i",
    )
    variation_strength: float = option(
        0.0,
        low=0,
        high=1,
        aliases=("subseed_strength",),
        label="Variation seed strength",
        to_text=_variation_to_text,
        meaning="how far the initial noise moves from the seed's to the variation seed's",
    )
