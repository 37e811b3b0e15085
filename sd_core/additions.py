"""What jobs add to a model from files of the volume: a group of a request's fields, and the records that they hold."""

from dataclasses import dataclass, replace

import numpy as np

from sd_core.checks import plain
from sd_core.fields import option

MAX_NAME = 256
MAX_LORAS = 8
MAX_WEIGHT = 4
MAX_IP_ADAPTERS = 2
MAX_IMAGE_WEIGHT = 2
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


@dataclass(frozen=True, kw_only=True)
class IPAdapter:
    """An image that is read beside the prompt, through an IP-Adapter."""

    model: str = option(
        min_length=1,
        max_length=MAX_NAME,
        aliases=("name", "path"),
        meaning="a file in `ip_adapters/`, without its ending; it needs its image encoder in `clip_vision/`",
    )
    image: np.ndarray = option(
        aliases=("ip_adapter_image", "image_url"), private=True, shown=False, meaning="the middle square of it is read"
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
