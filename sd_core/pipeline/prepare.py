"""A request -> one coroutine for each of its images."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sd_core.pipeline.images import to_pixels
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.picture import Source, picture
from sd_core.pipeline.prompts import read_prompts, reader_of
from sd_core.pipeline.sample import Run
from sd_core.pipeline.watch import OnStep
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise, Seeding
from sd_core.text.chunks import plain_chunks
from sd_core.work import HostTask, Picture, TextWork


@dataclass(frozen=True)
class Prepared:
    """The pictures of one job, not yet started, warnings for whoever reads the answer, and `Result.labels`."""

    pictures: list[Picture]
    warnings: list[str]
    labels: Mapping[str, str] = field(default_factory=dict)


def prepare(request: Request, model: StableDiffusion, on_step: Callable[[int], OnStep] | None = None) -> Prepared:
    """Read both prompts and make the coroutines; `on_step(index)` is called after each step of picture `index`."""
    reader = reader_of(model, request.prompt_syntax)
    prompts = read_prompts(reader, model, request.prompt, request.negative_prompt, Run.of(request), request.clip_skip)
    vae = model.networks.vae
    shape = (1, vae.config.z_channels, request.height // vae.downscale, request.width // vae.downscale)
    source = None
    if request.image is not None:
        source = Source(_digest(request.image), to_pixels(request.image, model.device))
    span = Run.of(request).span(model)
    pictures = [
        picture(
            request,
            model,
            prompts,
            CPUNoise(seed, shape, model.device, seeding(request, index), span),
            source,
            on_step and on_step(index),
        )
        for index, seed in enumerate(request.seeds)
    ]
    return Prepared(pictures, reader.warnings)


def seeding(request: Request, index: int) -> Seeding:
    """What the seed of the request's image of this index means."""
    return Seeding(
        request.rng, request.variation_seeds[index], request.variation_strength, request.eta_noise_seed_delta
    )


def read_prompt(prompt: str, model: StableDiffusion) -> Prepared:
    """A job that encodes a prompt and generates nothing: its image has no pixels."""
    (chunk,), _ = plain_chunks(prompt, model.vocabulary, model.networks.text_encoder.config.max_length)

    def reading() -> Picture:
        yield TextWork(model.text_key, (chunk.tokens,))
        return HostTask(lambda: np.empty((0, 0, 3), np.uint8))

    return Prepared([reading()], [])


def _digest(image: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    """Equal for equal images uint8 (H, W, 3)."""
    return image.shape, hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
