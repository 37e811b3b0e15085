"""A job as the core takes it, and its result."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from sd_core.fields import option

MAX_SEED = 2**63 - 1
MIN_SIDE, MAX_SIDE = 64, 2048
MAX_PROMPT = 8_000


def _size_to_text(request: "Request") -> str:
    return f"{request.width}x{request.height}"


def _size_from_text(text: str) -> Mapping[str, int]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


def _scale_to_text(request: "Request") -> str:
    return f"{request.guidance_scale:g}"


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
        above=0,
        high=1,
        aliases=("prompt_strength", "denoising_strength"),
        label="Denoising strength",
        acts_with=("image",),
        meaning="acts only with an image",
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
    """How far a running job is: each of its images has done `step` of its `steps` steps.

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
