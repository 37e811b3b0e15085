"""A request's prompts, read for one run of a sampler."""

from sd_core.errors import InvalidRequest
from sd_core.pipeline.conditioning import Prompts
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run
from sd_core.sampling.registry import SOLVERS
from sd_core.text.chunks import plain_chunks
from sd_core.text.editing import Steps
from sd_core.text.prompt import Reader
from sd_core.text.vocabulary import Vocabulary

MANY = 100
"""Steps in which a solver's calls are counted, so that one call more or less at an end makes no difference."""


def reader_of(model: StableDiffusion, syntax: str, vocabulary: Vocabulary | None = None) -> Reader:
    """What reads all prompts of one job, those of a second pass too; by default with the model's own vocabulary."""
    return Reader(syntax, vocabulary or model.vocabulary, model.networks.text_encoder.config.max_length)


def read_prompts(
    reader: Reader,
    model: StableDiffusion,
    prompt: str,
    negative_prompt: str,
    run: Run,
    clip_skip: int = 1,
    first: Run | None = None,
    names: tuple[str, str] = ("prompt", "negative_prompt"),
) -> Prompts:
    """The prompts of a run, whose edits count its steps; `first` is the first pass if the run is the second.

    AUTOMATIC1111's rules: an image-to-image run counts the steps as if it did all of them; a solver of two calls a step
    counts calls, so that a fraction means the same part of the run and a whole number counts half steps.
    `names` are the fields' names in errors and warnings. Raises `InvalidRequest`.
    """
    layers = model.networks.text_encoder.config.layers
    if clip_skip > layers:
        raise InvalidRequest(f"clip_skip: {clip_skip} is more than this model's text encoder has layers: {layers}")
    calls_a_step = _calls_a_step(run.sampler)
    before = None if first is None else first.steps * _calls_a_step(first.sampler)
    steps = Steps(run.steps * calls_a_step, before)
    (empty,), _ = plain_chunks("", model.vocabulary, reader.length)
    return Prompts(
        reader.parts(prompt, steps, names[0]),
        reader.whole(negative_prompt, steps, names[1]),
        empty.tokens,
        clip_skip - 1,
        calls_a_step,
    )


def _calls_a_step(sampler: str) -> int:
    """How often a solver asks the model in most of its steps."""
    sigmas = tuple(float(MANY - index) for index in range(MANY + 1))
    return round(SOLVERS[sampler].calls(sigmas) / MANY)
