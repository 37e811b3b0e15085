"""What jobs add to a model from files of the volume: a group of a request's fields, and the records that they hold."""

from dataclasses import dataclass, replace

from sd_core.fields import option

MAX_NAME = 256
MAX_LORAS = 8
MAX_WEIGHT = 4


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
