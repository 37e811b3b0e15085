"""A job as the core takes it, and its result."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Self

import numpy as np

from sd_core.additions import Additions
from sd_core.checks import plain
from sd_core.fields import option
from sd_core.groups import MAX_SEED, Inpainting, Noise, Refining
from sd_core.nested import MAX_PROMPT, MAX_SIDE, MIN_SIDE, Outpaint


def _size_to_text(request: "Request") -> str:
    return f"{request.width}x{request.height}"


def _size_from_text(text: str) -> Mapping[str, int]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


def _scale_to_text(request: "Request") -> str:
    return plain(request.guidance_scale)


def _syntax_to_text(request: "Request") -> str | None:
    return None if request.prompt_syntax == "a1111" else request.prompt_syntax


def _clip_skip_to_text(request: "Request") -> str | None:
    return None if request.clip_skip == 1 else str(request.clip_skip)


@dataclass(frozen=True)
class Basic:
    """What every image is generated from."""

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
        meaning="name of a checkpoint on the volume; `name.safetensors [hash]` is understood",
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


@dataclass(frozen=True, kw_only=True)
class Request(Noise, Additions, Refining, Inpainting, Basic):
    """One job, validated and with every default filled in.

    The fields are a job's, in the order of A1111's infotext: those of the bases, the last one's first, and those below.
    Each field of the core is described by its one line. `width` and `height` are pixels, multiples of 8. `image` is
    uint8 (height, width, 3) already at that size, except that it has its own if latents are resized (multiples of 8)
    or only a part of it is repainted; `mask` is uint8 of the image's height and width. Image i is generated from
    `seed + i`, wrapping at 2**63, or, with a `variation_strength`, from `seed` and `variation_seed + i`. `model` None
    means the engine's first model.
    """

    prompt_syntax: str = option(
        "a1111",
        choices=("a1111", "comfy", "plain"),
        label="Prompt syntax",
        to_text=_syntax_to_text,
        meaning="see below",
    )
    clip_skip: int = option(
        1,
        low=1,
        high=12,
        label="Clip skip",
        to_text=_clip_skip_to_text,
        meaning="the text encoder's layer that is used, counted from the last one; at most as many as it has",
    )

    @property
    def is_masked(self) -> bool:
        """Whether a part of the image is repainted and the rest is kept."""
        return self.image is not None and (self.mask is not None or self.outpaint is not None)

    @property
    def mask_blurs(self) -> tuple[int, int]:
        """The mask's blur in x and in y, pixels."""
        x, y = self.mask_blur_x, self.mask_blur_y
        return self.mask_blur if x is None else x, self.mask_blur if y is None else y

    @property
    def generated_size(self) -> tuple[int, int]:
        """Width and height in pixels at which it is generated: the border by which an image grows comes on top."""
        grows = self.is_masked and self.inpaint_area == "whole"
        border = self.outpaint if grows and self.outpaint is not None else Outpaint()
        return self.width + border.left + border.right, self.height + border.top + border.bottom

    @property
    def guidance_scale(self) -> float:
        """The scale of classifier-free guidance; 1 and less means none."""
        return self.scale if self.do_scale else 1.0

    @property
    def seeds(self) -> list[int]:
        """The seed of each image: counted up, but the same for all variations of one."""
        if self.variation_strength > 0:
            return [self.seed] * self.num_images
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images)]

    @property
    def variation_seeds(self) -> list[int]:
        """The variation seed of each image."""
        return [((self.variation_seed or 0) + index) % (MAX_SEED + 1) for index in range(self.num_images)]

    def of_image(self, index: int) -> Self:
        """The request of this image alone, which generates it again."""
        variation = None if self.variation_seed is None else self.variation_seeds[index]
        return replace(self, num_images=1, seed=self.seeds[index], variation_seed=variation)


@dataclass(frozen=True)
class Result:
    """The images of one job, uint8 (H, W, 3) each, with the seed of each and where the time went.

    `labels` are what an infotext says beside the request's fields, such as the hashes of the embeddings that were used.
    """

    images: list[np.ndarray]
    seeds: list[int]
    timings_ms: dict[str, float]  # queue, encode, denoise, decode
    warnings: list[str] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a running job is: each of its images has done `step` of its `steps` steps.

    `percent` counts the network calls of all its images, because a step of some samplers takes several. `preview`
    renders its first image as it would be if it ended here, uint8: (H / 8, W / 8, 3), or by a TAESD that the job names
    (H, W, 3) with sides of at most 512. It blocks on the device, so call it neither on the engine's thread nor on an
    event loop.
    """

    step: int
    steps: int
    percent: int
    preview: Callable[[], np.ndarray]


# Called on the engine's thread after each step of a job: it must return at once and raise nothing.
Observe = Callable[[Progress], None]
