"""An image's parameters as text, in the format that AUTOMATIC1111's web UI writes and reads."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sd_core.fields import Field, Record
from sd_core.pipeline.complete import acts
from worker.api.job import JOB, Job


def infotext(job: Job, seed: int, model: Mapping[str, str | None], record: Record = JOB) -> str:
    """The text of the job's image that was generated from `seed`; `model` is its name and sha256."""
    request = replace(job.request, seed=seed)
    pairs = []
    for label, value in labelled(record, request, job.door):
        if label == record["model"].label:
            pairs.append(("Model hash", (model["sha256"] or "")[:10]))
        pairs.append((label, value))
    line = ", ".join(f"{label}: {_quoted(value)}" for label, value in pairs if value)
    negative = f"Negative prompt: {request.negative_prompt}\n" if request.negative_prompt else ""
    return f"{request.prompt}\n{negative}{line}"


def labelled(record: Record, *holders: Any) -> Iterator[tuple[str, str]]:
    """Label and text of each field that has a label and a value in use; the values are attributes of the holders."""
    values = {name: value for holder in holders for name, value in vars(holder).items()}
    for field in record:
        value = values.get(field.name)
        if value is None or not acts(field.acts_with, values):
            continue
        holder = next(holder for holder in holders if hasattr(holder, field.name))
        if field.label:
            text = _text(field, value) if field.to_text is None else field.to_text(holder)
            if text is not None:
                yield field.label, text
        if field.record is not None:
            yield from labelled(field.record, value)


def _text(field: Field, value: Any) -> str:
    return f"{value:g}" if field.type is float else str(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
