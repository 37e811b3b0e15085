"""What jobs add to a model from files of the volume: a group of a request's fields, and the records that they hold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from sd_core.checks import plain
from sd_core.fields import option

MAX_NAME = 256
MAX_LORAS = 8
MAX_WEIGHT = 4
MAX_CONTROLNETS = 3
MAX_CONTROL = 2
MAX_IP_ADAPTERS = 2
MAX_IMAGE_WEIGHT = 2

IMAGED = ("controlnets", "ip_adapters")
"""Lists whose entries have an image, or take the job's own."""

IMAGE_SCALE = 1.5

# A1111's names for the VAE of the checkpoint.
OWN_VAE = ("Automatic", "None")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA, or another adapter of its kind, and how strongly it acts on the UNet and on the text encoder."""

    name: str = option(
        min_length=1, max_length=MAX_NAME, aliases=("lora", "path"), meaning="a file in `loras/`, without its ending"
    )
    weight: float = option(
        1.0, low=-MAX_WEIGHT, high=MAX_WEIGHT, aliases=("lora_scale", "scale", "strength", "unet_weight")
    )
    text_weight: float | None = option(
        None,
        filled="`weight`",
        low=-MAX_WEIGHT,
        high=MAX_WEIGHT,
        aliases=("te_weight",),
        meaning="of the text encoder's part",
    )

    @property
    def completed(self) -> "Lora":
        """The same with nothing left open."""
        return self if self.text_weight is not None else replace(self, text_weight=self.weight)


MODES: Mapping[str, str] = MappingProxyType(
    {
        "balanced": "Balanced",
        "prompt": "My prompt is more important",
        "control": "ControlNet is more important",
    }
)
RESIZE_MODES: Mapping[str, str] = MappingProxyType(
    {"stretch": "Just Resize", "crop": "Crop and Resize", "fill": "Resize and Fill"}
)
HR_OPTIONS: Mapping[str, str] = MappingProxyType({"both": "Both", "low": "Low res only", "high": "High res only"})
"""Choices, each with the words of sd-webui-controlnet, in the order of its numbers."""

PREPROCESSORS = ("none", "canny", "invert", "threshold", "scribble_xdog", "lineart_standard", "blur", "tile", "inpaint")
OTHER_PREPROCESSORS: Mapping[str, str] = MappingProxyType(
    {
        "None": "none",
        "invert (from white bg & black line)": "invert",
        "lineart_standard (from white bg & black line)": "lineart_standard",
        "blur_gaussian": "blur",
        "tile_resample": "tile",
        "inpaint_only": "inpaint",
        "inpaint_global_harmonious": "inpaint",
    }
)
"""What sd-webui-controlnet calls those that have another name here."""


def _spellings(choices: Mapping[str, str]) -> tuple[tuple[Any, str], ...]:
    return (*enumerate(choices), *((words, choice) for choice, words in choices.items()))


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """A network that steers an image by a control image: a ControlNet or a T2I-Adapter."""

    model: str = option(
        min_length=1,
        max_length=MAX_NAME,
        aliases=("name", "path"),
        meaning="a file in `controlnet/`, without its ending",
    )
    image: np.ndarray | None = option(
        None,
        filled="the job's `image`",
        aliases=("input_image", "control_image", "image_url"),
        private=True,
        shown=False,
        meaning="the control image, or an image for the preprocessor",
    )
    weight: float = option(
        1.0,
        low=0,
        high=MAX_CONTROL,
        aliases=("controlnet_conditioning_scale", "conditioning_scale", "strength", "scale"),
    )
    start: float = option(
        0.0,
        low=0,
        high=1,
        aliases=("guidance_start", "control_guidance_start", "start_percent"),
        meaning="the part of the steps before it acts",
    )
    end: float = option(
        1.0,
        low=0,
        high=1,
        aliases=("guidance_end", "control_guidance_end", "end_percent"),
        meaning="the part of the steps after which it no longer acts",
    )
    mode: str = option(
        "balanced",
        choices=tuple(MODES),
        spellings=_spellings(MODES),
        aliases=("control_mode",),
        meaning="prompt: weaker in fine detail; control: also without effect on the negative prompt's rows",
    )
    preprocessor: str = option(
        "none",
        choices=PREPROCESSORS,
        spellings=tuple(OTHER_PREPROCESSORS.items()),
        aliases=("module",),
        meaning="makes the control image; inpaint needs a mask",
    )
    low: float | None = option(
        None,
        filled="the preprocessor's own",
        low=0,
        high=255,
        aliases=("threshold_a", "low_threshold"),
        meaning="canny: lower threshold; threshold: the level; scribble_xdog: 1..64; blur: sigma; tile: rate",
    )
    high: float | None = option(
        None,
        filled="the preprocessor's own",
        low=0,
        high=255,
        aliases=("threshold_b", "high_threshold"),
        meaning="canny: upper threshold",
    )
    resize_mode: str = option(
        "crop",
        choices=tuple(RESIZE_MODES),
        spellings=(
            *_spellings(RESIZE_MODES),
            ("Scale to Fit (Inner Fit)", "crop"),
            ("Inner Fit (Scale to Fit)", "crop"),
            ("Envelope (Outer Fit)", "fill"),
            ("Outer Fit (Shrink to Fit)", "fill"),
        ),
        meaning="how the image is brought to the generated size",
    )
    hr_option: str = option(
        "both",
        choices=tuple(HR_OPTIONS),
        spellings=_spellings(HR_OPTIONS),
        meaning="the passes that it acts in, with hires",
    )

    def to_text(self) -> str:
        """The text of an infotext as sd-webui-controlnet writes it."""
        pairs = {
            "Module": self.preprocessor,
            "Model": self.model,
            "Weight": plain(self.weight),
            "Resize Mode": RESIZE_MODES[self.resize_mode],
            **{
                label: plain(value)
                for label, value in (("Threshold A", self.low), ("Threshold B", self.high))
                if value is not None
            },
            "Guidance Start": plain(self.start),
            "Guidance End": plain(self.end),
            "Control Mode": MODES[self.mode],
            "Hr Option": HR_OPTIONS[self.hr_option],
        }
        return ", ".join(f"{label}: {value}" for label, value in pairs.items())


_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "module": "preprocessor",
        "model": "model",
        "weight": "weight",
        "resize mode": "resize_mode",
        "threshold a": "low",
        "threshold b": "high",
        "guidance start": "start",
        "guidance end": "end",
        "control mode": "mode",
        "hr option": "hr_option",
    }
)
"""Labels inside the text of a ControlNet, in lower case, and the fields that they mean."""


def controlnet_from_text(text: str) -> Mapping[str, Any]:
    """The fields that the text of a ControlNet in an infotext names. Raises `ValueError` without a model."""
    pairs = [pair.partition(":") for pair in text.split(",")]
    found = {label.strip().lower(): value.strip() for label, colon, value in pairs if colon}
    values: dict[str, Any] = {}
    for label, value in found.items():
        name = _LABELS.get(label)
        if name in ("weight", "start", "end"):
            values[name] = float(value)
        elif name in ("low", "high"):
            # Their -1 means the preprocessor's own.
            values |= {name: float(value)} if float(value) >= 0 else {}
        elif name is not None:
            values[name] = value
    if "model" not in values:
        raise ValueError(text)
    return values


@dataclass(frozen=True, kw_only=True)
class IPAdapter:
    """An image that is read beside the prompt, through an IP-Adapter."""

    model: str = option(
        min_length=1,
        max_length=MAX_NAME,
        aliases=("name", "path"),
        meaning="a file in `ip_adapters/`, without its ending; it needs its image encoder in `clip_vision/`",
    )
    image: np.ndarray | None = option(
        None,
        filled="the job's `image`",
        aliases=("ip_adapter_image", "image_url"),
        private=True,
        shown=False,
        meaning="the middle square of it is read",
    )
    weight: float = option(1.0, low=0, high=MAX_IMAGE_WEIGHT, aliases=("ip_adapter_scale", "strength", "scale"))
    start: float = option(
        0.0,
        low=0,
        high=1,
        aliases=("guidance_start", "start_percent", "start_at"),
        meaning="the part of the steps before it acts",
    )
    end: float = option(
        1.0,
        low=0,
        high=1,
        aliases=("guidance_end", "end_percent", "end_at"),
        meaning="the part of the steps after which it no longer acts",
    )


@dataclass(frozen=True, kw_only=True)
class Additions:
    """Adapters and networks from files."""

    loras: tuple[Lora, ...] = option((), max_items=MAX_LORAS, flat=("lora", "lora_scale"))
    controlnets: tuple[ControlNet, ...] = option(
        (),
        max_items=MAX_CONTROLNETS,
        label="ControlNet",
        to_text=ControlNet.to_text,
        from_text=controlnet_from_text,
        meaning="ControlNets and T2I-Adapters",
    )
    ip_adapters: tuple[IPAdapter, ...] = option((), max_items=MAX_IP_ADAPTERS, meaning="images that act as prompts")
    image_scale: float = option(
        IMAGE_SCALE,
        low=0,
        high=20,
        aliases=("image_cfg_scale",),
        label="Image CFG scale",
        to_text=lambda request: None if request.image_scale == IMAGE_SCALE else plain(request.image_scale),
        acts_with=("image",),
        meaning="how closely a checkpoint that edits images (instruct-pix2pix) keeps to the sent one",
    )
    vae: str | None = option(
        None,
        filled="the checkpoint's own",
        min_length=1,
        max_length=MAX_NAME,
        label="VAE",
        meaning="a file in `vae/`, without its ending; `Automatic` and `None` mean the checkpoint's own",
    )
