"""What is asked of the core, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from sd_core.fields import ToText, option
from sd_core.nested import MAX_PROMPT, MAX_SIDE, MIN_SIDE, FreeU, Hires

MAX_SEED = 2**63 - 1


def _size_to_text(request: "Request") -> str:
    return f"{request.width}x{request.height}"


def _size_from_text(text: str) -> Mapping[str, int]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


def _scale_to_text(request: "Request") -> str:
    return f"{request.guidance_scale:g}"


def _if_set(name: str, default: object) -> ToText:
    """The text of a field that an infotext leaves out at its default."""

    def to_text(request: "Request") -> str | None:
        value = getattr(request, name)
        return None if value == default else f"{value:g}" if isinstance(value, float) else str(value)

    return to_text


@dataclass(frozen=True)
class Request:
    """One job, validated and with every default filled in.

    The fields are a job's, in the order of A1111's infotext; this is the one place where a field of the core is
    described. `width` and `height` are pixels, multiples of 8. `image` is uint8 (height, width, 3) already at that
    size. Image i is generated from `seed + i`, wrapping at 2**63. `model` None means the engine's first model.
    """

    prompt: str = option(max_length=MAX_PROMPT, private=True, meaning="may be empty")
    _: KW_ONLY
    negative_prompt: str = option("", max_length=MAX_PROMPT, private=True)
    steps: int = option(25, low=1, high=150, aliases=("num_inference_steps",), label="Steps")
    sampler: str = option(
        "dpmpp_2m",
        filled="`dpmpp_2m_karras`",
        min_length=1,
        max_length=100,
        aliases=("scheduler", "sampler_name"),
        label="Sampler",
        meaning="see below",
    )
    schedule: str = option("karras", filled="the sampler's own", min_length=1, max_length=100, meaning="see below")
    scale: float = option(
        7.5,
        low=0,
        high=50,
        aliases=("guidance_scale", "cfg_scale"),
        label="CFG scale",
        to_text=_scale_to_text,
        meaning="1 and less means no guidance",
    )
    do_scale: bool = option(default=True, meaning="false: no classifier-free guidance, one UNet row a step")
    seed: int = option(
        filled="random below 2^32", low=-1, high=MAX_SEED, label="Seed", meaning="-1 or null: random; it comes back"
    )
    width: int = option(
        filled="the checkpoint's native size",
        low=MIN_SIDE,
        high=MAX_SIDE,
        multiple_of=8,
        label="Size",
        to_text=_size_to_text,
        from_text=_size_from_text,
        meaning="in pixels; at most `SD_MAX_PIXELS` together with `height` and `num_images`",
    )
    height: int = option(
        filled="the checkpoint's native size", low=MIN_SIDE, high=MAX_SIDE, multiple_of=8, meaning="as `width`"
    )
    model: str | None = option(
        None,
        filled="the worker's first",
        min_length=1,
        max_length=256,
        label="Model",
        meaning="name of a loaded checkpoint; `name.safetensors [hash]` is understood",
    )
    num_images: int = option(
        1,
        low=1,
        high=16,
        aliases=("num_outputs", "batch_size", "num_images_per_prompt"),
        meaning="image i has seed + i",
    )
    image: np.ndarray | None = option(
        None,
        aliases=("init_image", "image_url", "init_images[0]"),
        private=True,
        shown=False,
        meaning="makes it image-to-image",
    )
    strength: float = option(
        0.8,
        filled="0.8",
        above=0,
        high=1,
        aliases=("prompt_strength", "denoising_strength"),
        label="Denoising strength",
        acts_with=("image", "hires"),
        meaning="acts only with an image or with hires",
    )

    # What is generated beside the plain picture.
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
        meaning="the part by which guidance keeps the prediction's deviation",
    )
    pag_scale: float = option(
        0.0,
        low=0,
        high=20,
        label="PAG scale",
        to_text=_if_set("pag_scale", 0),
        meaning="perturbed attention guidance in the middle block; 0: none, else one row more",
    )
    freeu: FreeU | None = option(None, meaning="reweighs the coarsest levels; `{}`: its authors' factors for v1.5")
    guidance_start: float = option(
        0.0,
        low=0,
        high=1,
        label="Guidance start",
        to_text=_if_set("guidance_start", 0),
        meaning="the part of the steps before guidance begins; until then an image takes one row",
    )
    guidance_end: float = option(
        1.0,
        low=0,
        high=1,
        label="Guidance end",
        to_text=_if_set("guidance_end", 1),
        meaning="the part of the steps after which guidance ends",
    )
    deepcache: int = option(
        1,
        low=1,
        high=5,
        label="DeepCache interval",
        to_text=_if_set("deepcache", 1),
        meaning="every so many steps the whole UNet runs, between them its outermost block alone; changes the image",
    )
    tome_ratio: float = option(
        0.0,
        low=0,
        high=0.75,
        label="Token merging ratio",
        to_text=_if_set("tome_ratio", 0),
        meaning="the part of the tokens that is merged before self-attention; changes the image",
    )

    @property
    def guidance_scale(self) -> float:
        """The scale of classifier-free guidance; 1 and less means none."""
        return self.scale if self.do_scale else 1.0

    @property
    def seeds(self) -> list[int]:
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images)]


@dataclass(frozen=True)
class Result:
    """The images of one job, uint8 (H, W, 3) each, with the seed of each and where the time went."""

    images: list[np.ndarray]
    seeds: list[int]
    timings_ms: dict[str, float]  # queue, encode, denoise, decode
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """How far a running job is: every image of it has done `step` of its `steps` steps.

    `percent` counts the network calls of all its images, because a step of some samplers takes several. `preview`
    renders its first image as it would be if it ended here, uint8 (H / 8, W / 8, 3); it blocks on the device, so call
    it on neither the engine's thread nor an event loop.
    """

    step: int
    steps: int
    percent: int
    preview: Callable[[], np.ndarray]


# Called on the engine's thread after each step of a job: it must return at once and raise nothing.
Observe = Callable[[Progress], None]
