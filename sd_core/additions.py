"""What jobs add to a model from files of the volume: a group of a request's fields, and the records that they hold."""

from dataclasses import dataclass, replace

from sd_core.checks import plain
from sd_core.fields import option

MAX_NAME = 256
MAX_LORAS = 8
MAX_WEIGHT = 4
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
class Additions:
    """Adapters and networks from files."""

    loras: tuple[Lora, ...] = option((), max_items=MAX_LORAS, flat=("lora", "lora_scale"))
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
