"""A request -> one coroutine for each of its images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from sd_core.pipeline.attached import NONE, Loaded, Needs
from sd_core.pipeline.conditioning import Prompts
from sd_core.pipeline.control import Hints
from sd_core.pipeline.embeddings import hashes_of
from sd_core.pipeline.images import Source
from sd_core.pipeline.inpaint import masked
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.once import Once
from sd_core.pipeline.picture import masked_picture, picture
from sd_core.pipeline.prompts import read_prompts, reader_of
from sd_core.pipeline.sample import Run
from sd_core.pipeline.sizes import sizes_of
from sd_core.pipeline.watch import OnStep
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise, Seeding
from sd_core.text.chunks import plain_chunks
from sd_core.text.prompt import Reader
from sd_core.work import HostTask, Picture, TextWork


@dataclass(frozen=True)
class Prepared:
    """The pictures of one job, not yet started, warnings for whoever reads the answer, and `Result.labels`.

    Warnings and labels are complete when the pictures are: what a job's files and prompts say comes with the first.
    """

    pictures: list[Picture]
    warnings: list[str]
    labels: Mapping[str, str] = field(default_factory=dict)


def prepare(
    request: Request,
    model: StableDiffusion,
    on_step: Callable[[int], OnStep] | None = None,
    needs: Needs = NONE,
) -> Prepared:
    """Make the coroutines; `on_step(index)` is called after each step of picture `index`.

    The first of them reads what the request `needs`, then all prompts, for all of them.
    """
    runs = list(zip(Run.all_of(request), sizes_of(request), strict=True))
    warnings, labels = list(model.borrowed.values()), dict[str, str]()
    loading, hints = needs.loading(), Hints(request)
    prompts = cache(partial(_prompts, request, model, warnings, labels))
    makers = []
    for index, seed in enumerate(request.seeds):
        noises = [_noise(run, size, seed, seeding(request, index), model) for run, size in runs]
        watch = on_step and on_step(index)
        makers.append(partial(picture, request, model, loading, prompts, noises, hints, on_step=watch))
    return Prepared(_pictures(request, model, makers), warnings, labels)


def _noise(run: Run, size: tuple[int, int], seed: int, meant: Seeding, model: StableDiffusion) -> CPUNoise:
    """The noise of a run of this size (width, height) in pixels."""
    vae, (width, height) = model.networks.vae, size
    shape = (1, vae.config.z_channels, height // vae.downscale, width // vae.downscale)
    return CPUNoise(seed, shape, model.device, meant, run.span(model))


def _prompts(
    request: Request, model: StableDiffusion, warnings: list[str], labels: dict[str, str], loaded: Loaded
) -> tuple[Prompts, ...]:
    """The prompts of each run, read with what was loaded; adds to `warnings` and `labels`."""
    vocabulary = (loaded.vocabulary or model.vocabulary).extended(loaded.loras.embeddings)
    reader = reader_of(model, request.prompt_syntax, vocabulary)
    prompts = _read(request, model, reader)
    warnings += [*reader.warnings, *loaded.loras.warnings]
    labels |= hashes_of(prompts, vocabulary) | dict(loaded.loras.labels)
    return prompts


def _read(request: Request, model: StableDiffusion, reader: Reader) -> tuple[Prompts, ...]:
    """Those of the first run, and of the second one with hires: the job's own unless it has others."""
    runs, hires = Run.all_of(request), request.hires
    texts, names = [request.prompt, request.negative_prompt], ["prompt", "negative_prompt"]
    first = read_prompts(reader, model, texts[0], texts[1], runs[0], request.clip_skip)
    if hires is None:
        return (first,)
    for index, own in enumerate((hires.prompt, hires.negative_prompt)):
        if own is not None:
            texts[index], names[index] = own, f"hires.{names[index]}"
    second = read_prompts(reader, model, texts[0], texts[1], runs[1], request.clip_skip, runs[0], (names[0], names[1]))
    return first, second


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
    request: Request, model: StableDiffusion, makers: Sequence[Callable[[Source | None], Picture]]
) -> list[Picture]:
    """The pictures of a request, one of each of `makers`, from the source that all of them start from."""
    if request.image is None:
        return [make(None) for make in makers]
    if not request.is_masked:
        source = Source.of(request.image, model.device)
        return [make(source) for make in makers]
    prepared = Once(partial(masked, request, model.device, shows_kept=model.takes_mask))
    return [masked_picture(prepared, make) for make in makers]
