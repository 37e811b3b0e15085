"""A request -> one coroutine for each of its images."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sd_core.pipeline.images import to_pixels
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.picture import Source, picture
from sd_core.pipeline.watch import OnStep
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise
from sd_core.text.tokenizer import tokenize
from sd_core.work import HostTask, Picture, TextWork


@dataclass(frozen=True)
class Prepared:
    """The pictures of one job, not yet started, warnings for whoever reads the answer, and `Result.labels`."""

    pictures: list[Picture]
    warnings: list[str]
    labels: Mapping[str, str] = field(default_factory=dict)


def prepare(request: Request, model: StableDiffusion, on_step: Callable[[int], OnStep] | None = None) -> Prepared:
    """Tokenize both prompts and make the coroutines; `on_step(index)` is called after each step of picture `index`."""
    length = model.networks.text_encoder.config.max_length
    positive, warnings = tokenize(model.tokenizer, request.prompt, length, "prompt")
    negative, negative_warnings = tokenize(model.tokenizer, request.negative_prompt, length, "negative_prompt")
    vae = model.networks.vae
    shape = (1, vae.config.z_channels, request.height // vae.downscale, request.width // vae.downscale)
    source = None
    if request.image is not None:
        source = Source(_digest(request.image), to_pixels(request.image, model.device))
    pictures = [
        picture(
            request,
            model,
            (positive, negative),
            CPUNoise(seed, shape, model.device),
            source,
            on_step and on_step(index),
        )
        for index, seed in enumerate(request.seeds)
    ]
    return Prepared(pictures, warnings + negative_warnings)


def read_prompt(prompt: str, model: StableDiffusion) -> Prepared:
    """A job that encodes a prompt and generates nothing: its image has no pixels."""
    ids, warnings = tokenize(model.tokenizer, prompt, model.networks.text_encoder.config.max_length, "prompt")

    def reading() -> Picture:
        yield TextWork(model.text_key, (ids,))
        return HostTask(lambda: np.empty((0, 0, 3), np.uint8))

    return Prepared([reading()], warnings)


def _digest(image: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """Equal for equal images uint8 (H, W, 3)."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
