"""Records that are fields of a request."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sd_core.checks import plain
from sd_core.fields import option

MIN_SIDE, MAX_SIDE = 64, 2048
MAX_PROMPT = 8_000

UPSCALERS: Mapping[str, str] = MappingProxyType(
    {
        "lanczos": "Lanczos",
        "nearest": "Nearest",
        "latent": "Latent",
        "latent_antialiased": "Latent (antialiased)",
        "latent_bicubic": "Latent (bicubic)",
        "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
        "latent_nearest": "Latent (nearest)",
        "latent_nearest_exact": "Latent (nearest-exact)",
    }
)
"""The upscalers that need no file, with the names that A1111 shows."""


def _upscaler_to_text(hires: "Hires") -> str:
    return UPSCALERS.get(hires.upscaler, hires.upscaler)


def _upscale_to_text(hires: "Hires") -> str | None:
    return plain(hires.scale) if hires.width is None and hires.height is None else None


def _resize_to_text(hires: "Hires") -> str | None:
    return None if hires.width is None and hires.height is None else f"{hires.width or 0}x{hires.height or 0}"


def _resize_from_text(text: str) -> Mapping[str, int]:
    width, height = text.split("x")
    return {name: int(side) for name, side in (("width", width), ("height", height)) if int(side)}


@dataclass(frozen=True, kw_only=True)
class Hires:
    """A second pass at a larger size. A field that is None has the job's value."""

    scale: float = option(
        2.0,
        low=1,
        high=4,
        aliases=("hr_scale",),
        label="Hires upscale",
        to_text=_upscale_to_text,
        meaning="of the job's width and height, unless `width` or `height` is given",
    )
    width: int | None = option(
        None,
        low=MIN_SIDE,
        high=MAX_SIDE,
        multiple_of=8,
        aliases=("hr_resize_x",),
        label="Hires resize",
        to_text=_resize_to_text,
        from_text=_resize_from_text,
        meaning="if `height` is given too and the aspect differs from the job's, the borders are cut off",
    )
    height: int | None = option(None, low=MIN_SIDE, high=MAX_SIDE, multiple_of=8, aliases=("hr_resize_y",))
    upscaler: str = option(
        "lanczos",
        min_length=1,
        max_length=256,
        aliases=("hr_upscaler",),
        label="Hires upscaler",
        to_text=_upscaler_to_text,
        meaning="see below",
    )
    steps: int | None = option(
        None, filled="the job's own", low=1, high=150, aliases=("hr_second_pass_steps",), label="Hires steps"
    )
    strength: float = option(
        0.7, filled="the job's `strength` if it is given without an image, else 0.7", above=0, high=1
    )
    prompt: str | None = option(
        None,
        filled="the job's own",
        max_length=MAX_PROMPT,
        private=True,
        aliases=("hr_prompt",),
        label="Hires prompt",
    )
    negative_prompt: str | None = option(
        None,
        filled="the job's own",
        max_length=MAX_PROMPT,
        private=True,
        aliases=("hr_negative_prompt",),
        label="Hires negative prompt",
    )
    sampler: str | None = option(
        None,
        filled="the job's own",
        min_length=1,
        max_length=100,
        aliases=("hr_sampler_name",),
        label="Hires sampler",
    )
    schedule: str | None = option(
        None,
        filled="the sampler's own",
        min_length=1,
        max_length=100,
        aliases=("hr_scheduler",),
        label="Hires schedule type",
    )
    cfg: float | None = option(
        None, filled="the job's `scale`", low=0, high=50, aliases=("hr_cfg",), label="Hires CFG Scale"
    )


@dataclass(frozen=True, kw_only=True)
class Outpaint:
    """A border in pixels by which an image grows."""

    left: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)
    right: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)
    top: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)
    bottom: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)


@dataclass(frozen=True, kw_only=True)
class FreeU:
    """The factors of FreeU; the defaults are its authors' for v1.5."""

    b1: float = option(1.5, low=0, high=4, label="FreeU b1")
    b2: float = option(1.6, low=0, high=4, label="FreeU b2")
    s1: float = option(0.9, low=0, high=4, label="FreeU s1")
    s2: float = option(0.2, low=0, high=4, label="FreeU s2")
