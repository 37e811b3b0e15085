"""A request -> one coroutine for each of its images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sd_core.pipeline.images import to_pixels
from sd_core.pipeline.inpaint import digest, masked
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.once import Once
from sd_core.pipeline.picture import masked_picture, picture
from sd_core.pipeline.start import Source
from sd_core.pipeline.watch import OnStep
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise
from sd_core.text.tokenizer import tokenize
from sd_core.work import HostTask, Picture, TextWork


@dataclass(frozen=True)
class Prepared:
    """The pictures of one job, not yet started, and warnings for whoever reads the answer."""

    pictures: list[Picture]
    warnings: list[str]


def prepare(request: Request, model: StableDiffusion, on_step: Callable[[int], OnStep] | None = None) -> Prepared:
    """Tokenize both prompts and make the coroutines; `on_step(index)` is called after each step of picture `index`."""
    length = model.networks.text_encoder.config.max_length
    positive, warnings = tokenize(model.tokenizer, request.prompt, length, "prompt")
    negative, negative_warnings = tokenize(model.tokenizer, request.negative_prompt, length, "negative_prompt")
    vae, (width, height) = model.networks.vae, request.drawn_size
    shape = (1, vae.config.z_channels, height // vae.downscale, width // vae.downscale)
    noises = [CPUNoise(seed, shape, model.device) for seed in request.seeds]
    draws = [
        partial(picture, request, model, (positive, negative), noise, on_step=on_step and on_step(index))
        for index, noise in enumerate(noises)
    ]
    return Prepared(_pictures(request, model, draws), warnings + negative_warnings)


def read_prompt(prompt: str, model: StableDiffusion) -> Prepared:
    """A job that encodes a prompt and generates nothing: its image has no pixels."""
    ids, warnings = tokenize(model.tokenizer, prompt, model.networks.text_encoder.config.max_length, "prompt")

    def reading() -> Picture:
        yield TextWork(model.text_key, (ids,))
        return HostTask(lambda: np.empty((0, 0, 3), np.uint8))

    return Prepared([reading()], warnings)


def _pictures(
    request: Request, model: StableDiffusion, draws: Sequence[Callable[[Source | None], Picture]]
) -> list[Picture]:
    """The pictures of a request; `draws` make them from the source that all of them start from."""
    if request.image is None:
        return [draw(None) for draw in draws]
    if not request.is_masked:
        source = Source(digest(request.image), to_pixels(request.image, model.device))
        return [draw(source) for draw in draws]
    prepared = Once(partial(masked, request, model.device, shows_kept=model.takes_mask))
    return [masked_picture(prepared, draw) for draw in draws]
