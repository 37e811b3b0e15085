"""A request -> one coroutine for each of its images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sd_core.pipeline.conditioning import Prompts
from sd_core.pipeline.hires import Second
from sd_core.pipeline.images import Source
from sd_core.pipeline.inpaint import masked
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.once import Once
from sd_core.pipeline.picture import masked_picture, picture
from sd_core.pipeline.prompts import read_prompts, reader_of
from sd_core.pipeline.sample import Run
from sd_core.pipeline.sizes import enlarged
from sd_core.pipeline.upscale import Load
from sd_core.pipeline.watch import OnStep
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise, Seeding
from sd_core.text.chunks import plain_chunks
from sd_core.text.prompt import Reader
from sd_core.work import HostTask, Picture, TextWork


@dataclass(frozen=True)
class Prepared:
    """The pictures of one job, not yet started, warnings for whoever reads the answer, and `Result.labels`."""

    pictures: list[Picture]
    warnings: list[str]
    labels: Mapping[str, str] = field(default_factory=dict)


def prepare(
    request: Request,
    model: StableDiffusion,
    on_step: Callable[[int], OnStep] | None = None,
    load_upscaler: Load | None = None,
) -> Prepared:
    """Read all prompts and make the coroutines; `on_step(index)` is called after each step of picture `index`.

    `load_upscaler` is called on the host, if the request's hires pass needs it.
    """
    reader = reader_of(model, request.prompt_syntax)
    first, *later = _passes(request, model, reader)
    draws = []
    for index, seed in enumerate(request.seeds):
        noise, *more_noise = (each.noise(seed, seeding(request, index), model) for each in (first, *later))
        second = Second(later[0].prompts, more_noise[0], load_upscaler) if later else None
        watch = on_step and on_step(index)
        draws.append(partial(picture, request, model, first.prompts, noise, on_step=watch, second=second))
    return Prepared(_pictures(request, model, draws), reader.warnings)


@dataclass(frozen=True)
class _Pass:
    """What the images of a job have in common in one run: prompts and size (width, height) in pixels."""

    run: Run
    prompts: Prompts
    size: tuple[int, int]

    def noise(self, seed: int, meant: Seeding, model: StableDiffusion) -> CPUNoise:
        vae, (width, height) = model.networks.vae, self.size
        shape = (1, vae.config.z_channels, height // vae.downscale, width // vae.downscale)
        return CPUNoise(seed, shape, model.device, meant, self.run.span(model))


def _passes(request: Request, model: StableDiffusion, reader: Reader) -> list[_Pass]:
    """The passes of a job: one, or two with hires, whose prompts are the job's own unless it has others."""
    runs, hires, size = Run.all_of(request), request.hires, request.drawn_size
    skip, negative = request.clip_skip, request.negative_prompt
    prompts = read_prompts(reader, model, request.prompt, negative, runs[0], skip)
    passes = [_Pass(runs[0], prompts, size)]
    if hires is not None:
        texts, names = [request.prompt, negative], ["prompt", "negative_prompt"]
        for index, own in enumerate((hires.prompt, hires.negative_prompt)):
            if own is not None:
                texts[index], names[index] = own, f"hires.{names[index]}"
        again = read_prompts(reader, model, texts[0], texts[1], runs[1], skip, runs[0], (names[0], names[1]))
        passes.append(_Pass(runs[1], again, enlarged(*size, hires).size))
    return passes


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


def _pictures(
    request: Request, model: StableDiffusion, draws: Sequence[Callable[[Source | None], Picture]]
) -> list[Picture]:
    """The pictures of a request; `draws` make them from the source that all of them start from."""
    if request.image is None:
        return [draw(None) for draw in draws]
    if not request.is_masked:
        source = Source.of(request.image, model.device)
        return [draw(source) for draw in draws]
    prepared = Once(partial(masked, request, model.device, shows_kept=model.takes_mask))
    return [masked_picture(prepared, draw) for draw in draws]
