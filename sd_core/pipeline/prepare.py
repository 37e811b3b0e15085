"""A request -> one coroutine for each of its images."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sd_core.pipeline.hires import Second
from sd_core.pipeline.images import Source
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.picture import picture
from sd_core.pipeline.sizes import enlarged
from sd_core.pipeline.upscale import Load
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


def prepare(
    request: Request,
    model: StableDiffusion,
    on_step: Callable[[int], OnStep] | None = None,
    load_upscaler: Load | None = None,
) -> Prepared:
    """Tokenize all prompts and make the coroutines; `on_step(index)` is called after each step of picture `index`.

    `load_upscaler` is called on the host, if the request's hires pass needs it.
    """
    length = model.networks.text_encoder.config.max_length
    warnings = list[str]()

    def ids_of(prompt: str, field: str) -> tuple[int, ...]:
        ids, cut = tokenize(model.tokenizer, prompt, length, field)
        warnings.extend(cut)
        return ids

    prompts = ids_of(request.prompt, "prompt"), ids_of(request.negative_prompt, "negative_prompt")
    source = None if request.image is None else Source.of(request.image, model.device)
    hires, pictures = request.hires, list[Picture]()
    later = prompts
    if hires is not None:
        later = (
            prompts[0] if hires.prompt is None else ids_of(hires.prompt, "hires.prompt"),
            prompts[1] if hires.negative_prompt is None else ids_of(hires.negative_prompt, "hires.negative_prompt"),
        )
    for index, seed in enumerate(request.seeds):
        second = None
        if hires is not None:
            size = enlarged(request.width, request.height, hires).size
            second = Second(later, _noise(seed, size, model), load_upscaler)
        noise = _noise(seed, (request.width, request.height), model)
        pictures.append(picture(request, model, prompts, noise, source, on_step and on_step(index), second))
    return Prepared(pictures, warnings)


def _noise(seed: int, size: tuple[int, int], model: StableDiffusion) -> CPUNoise:
    """The noise of one picture of `size` (width, height) in pixels."""
    vae, (width, height) = model.networks.vae, size
    return CPUNoise(seed, (1, vae.config.z_channels, height // vae.downscale, width // vae.downscale), model.device)


def read_prompt(prompt: str, model: StableDiffusion) -> Prepared:
    """A job that encodes a prompt and generates nothing: its image has no pixels."""
    ids, warnings = tokenize(model.tokenizer, prompt, model.networks.text_encoder.config.max_length, "prompt")

    def reading() -> Picture:
        yield TextWork(model.text_key, (ids,))
        return HostTask(lambda: np.empty((0, 0, 3), np.uint8))

    return Prepared([reading()], warnings)
