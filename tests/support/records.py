"""Copies of a job's record with fewer fields, for tests of what a record lacks."""

from dataclasses import replace

from sd_core.fields import Record
from worker.api.job import JOB

PLAIN = frozenset({
    "prompt", "negative_prompt", "steps", "sampler", "schedule", "scale", "do_scale", "seed", "width", "height",
    "model", "num_images", "image", "strength", "uid", "output_format", "preview", "parameters",
    "rng", "prompt_syntax",
})  # fmt: skip


def plain_record() -> Record:
    """The record of a job with the fields that every tool knows, and no other."""
    return replace(JOB, fields=tuple(field for field in JOB if field.name in PLAIN))
