"""What is asked of the core, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from sd_core.fields import option

MAX_SEED = 2**63 - 1
MIN_SIDE, MAX_SIDE = 64, 2048
MAX_PROMPT = 8_000

MASKED = ("mask", "outpaint")
FILLS = ("fill", "original", "latent_noise", "latent_nothing")
AREA_LABELS = (("Whole picture", "whole"), ("Only masked", "masked"))


def _size_to_text(request: "Request") -> str:
    return f"{request.width}x{request.height}"


def _size_from_text(text: str) -> Mapping[str, int]:
    width, height = text.split("x")
    return {"width": int(width), "height": int(height)}


def _scale_to_text(request: "Request") -> str:
    return f"{request.guidance_scale:g}"


def _outpaint_to_text(request: "Request") -> str:
    assert request.outpaint is not None  # a field without a value has no text
    return " ".join(f"{side} {pixels}" for side, pixels in vars(request.outpaint).items() if pixels)


def _outpaint_from_text(text: str) -> Mapping[str, Mapping[str, int]]:
    words = text.split()
    return {"outpaint": {side: int(pixels) for side, pixels in zip(words[::2], words[1::2], strict=True)}}


@dataclass(frozen=True, kw_only=True)
class Outpaint:
    """A border in pixels by which an image grows."""

    left: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)
    right: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)
    top: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)
    bottom: int = option(0, low=0, high=MAX_SIDE, multiple_of=8)


@dataclass(frozen=True)
class Request:
    """One job, validated and with every default filled in.

    The fields are a job's, in the order of A1111's infotext; this is the one place where a field of the core is
    described. `width` and `height` are pixels, multiples of 8. `image` is uint8 (height, width, 3) already at that
    size, except that it has its own where latents are resized (multiples of 8) or a part of it is drawn; `mask` is
    uint8 of the image's height and width. Image i is generated from `seed + i`, wrapping at 2**63. `model` None means
    the engine's first model.
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

    # Inpainting, and how an image comes to its size.
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
        meaning="pixels; softens the mask for drawing, so that seams are smooth",
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
        meaning="masked: the masked part is drawn at `width` x `height` and put back into the image as it was sent",
    )
    inpaint_padding: int = option(
        32,
        low=0,
        high=512,
        aliases=("inpaint_full_res_padding", "padding_mask_crop"),
        label="Masked area padding",
        to_text=lambda request: str(request.inpaint_padding) if request.inpaint_area == "masked" else None,
        acts_with=MASKED,
        meaning="pixels around the masked part that are drawn with it; `padding_mask_crop` also asks for that area",
    )
    outpaint: Outpaint | None = option(
        None,
        label="Outpaint",
        to_text=_outpaint_to_text,
        from_text=_outpaint_from_text,
        acts_with=("image",),
        meaning="pixels by which the image grows beyond `width` and `height`; the new border is repainted",
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
    def drawn_size(self) -> tuple[int, int]:
        """Width and height in pixels at which it is drawn: the border that an image grows by comes on top."""
        grows = self.is_masked and self.inpaint_area == "whole"
        border = self.outpaint if grows and self.outpaint is not None else Outpaint()
        return self.width + border.left + border.right, self.height + border.top + border.bottom

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
