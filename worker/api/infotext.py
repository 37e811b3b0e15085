"""An image's parameters as text, in the format that AUTOMATIC1111's web UI writes and reads.

What the format cannot hold follows as one quoted JSON object, so that the text, sent back as `parameters`, always
gives the same image. A field without a label is held that way too.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from sd_core.checks import check, plain
from sd_core.errors import InvalidRequest
from sd_core.fields import Field, Record
from sd_core.nested import MIN_SIDE
from sd_core.pipeline.complete import acts, complete
from sd_core.request import Request
from worker import VERSION
from worker.api.infotext_in import EXACT, NEGATIVE, read_infotext
from worker.api.job import JOB, Job
from worker.api.tags import with_tags

SELF = f"sd15-worker {VERSION}"
# Each image has a text of its own, and guidance that is off is written as a scale of 1.
NOT_OF_ONE_IMAGE = frozenset({"num_images", "do_scale", "model"})
NO_LABELS: Mapping[str, str] = MappingProxyType({})


def infotext(
    job: Job,
    seed: int,
    model: Mapping[str, str | None],
    record: Record = JOB,
    labels: Mapping[str, str] = NO_LABELS,
) -> str:
    """The text of the job's image that was generated from `seed`; `model` is its name and sha256.

    `labels` are further ones, which the text has but no field.
    """
    request = with_tags(replace(job.request, seed=seed))
    pairs = []
    for label, value in labelled(record, request, job.door):
        if label == record["model"].label:
            pairs.append(("Model hash", (model["sha256"] or "")[:10]))
        pairs.append((label, value))
    pairs += [*labels.items(), ("Version", SELF)]
    text = _joined(request, pairs)
    missing = _not_held(text, request, record)
    if not missing:
        return text
    pairs.append((EXACT, json.dumps(missing, ensure_ascii=False)))
    return _joined(request, pairs)


def labelled(record: Record, *holders: Any) -> Iterator[tuple[str, str]]:
    """Label and text of each field that has a label and a value in use; the values are attributes of the holders."""
    values = {name: value for holder in holders for name, value in vars(holder).items()}
    for field in record:
        value = values.get(field.name)
        if value is None or not acts(field.acts_with, values):
            continue
        holder = next(holder for holder in holders if hasattr(holder, field.name))
        if field.is_list:
            yield from _of_items(field, value)
        elif field.label:
            text = _text(field, value) if field.to_text is None else field.to_text(holder)
            if text is not None:
                yield field.label, text
        if field.record is not None and not field.is_list:
            yield from labelled(field.record, value)


def _of_items(field: Field, items: Any) -> Iterator[tuple[str, str]]:
    """A numbered label for each item of a list, if its field has a label."""
    for index, item in enumerate(items):
        text = None if field.to_text is None else field.to_text(item)
        if field.label and text is not None:
            yield f"{field.label} {index}", text


def as_json(field: Field, value: Any) -> Any:
    """A field's value as JSON; a nested record is an object of those of its fields that are shown."""
    if field.record is None or value is None:
        return value
    if field.is_list:
        return [_as_object(field.record, item) for item in value]
    return _as_object(field.record, value)


def _as_object(record: Record, value: Any) -> dict[str, Any]:
    return {field.name: as_json(field, getattr(value, field.name)) for field in record if field.shown}


def _joined(request: Any, pairs: list[tuple[str, str]]) -> str:
    line = ", ".join(f"{label}: {_quoted(value)}" for label, value in pairs if value)
    negative = f"{NEGATIVE} {request.negative_prompt}\n" if request.negative_prompt else ""
    return f"{request.prompt}\n{negative}{line}"


def _not_held(text: str, request: Request, record: Record) -> dict[str, Any]:
    """The core's values that `text` would not give back."""
    core = Record.of(type(request)).with_sources()
    wanted = {**vars(request), "scale": request.guidance_scale}
    read = {} if (again := _again(text, request, record)) is None else vars(again)
    return {
        field.name: as_json(field, wanted[field.name])
        for field in core
        if field.shown
        and field.name not in NOT_OF_ONE_IMAGE
        and acts(field.acts_with, wanted)
        and (field.name not in read or as_json(field, read[field.name]) != as_json(field, wanted[field.name]))
    }


def _again(text: str, request: Request, record: Record) -> Request | None:
    """The request that `text` makes beside the same images; None if it makes none.

    That is so if prompts are split elsewhere: one of them may then be longer than a prompt can be.
    """
    images = {field.name: getattr(request, field.name) for field in Record.of(type(request)) if not field.shown}
    try:
        values = check(record, read_infotext(text, record).values).values
        return complete(type(request), {"prompt": "", **values, **images}, request.model or "", MIN_SIDE)
    except InvalidRequest:
        return None


def _text(field: Field, value: Any) -> str:
    return plain(value) if field.type is float else str(value)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
