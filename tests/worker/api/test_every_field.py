"""Every field of the core comes back from the text that its value is written in, also one that is added later."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from sd_core.errors import InvalidRequest
from sd_core.fields import Field, Record, option
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS
from worker.api.infotext import infotext
from worker.api.job import JOB, Job, Limits, job_record, parse_request
from worker.api.response import parameters

LIMITS = Limits(2**24, {"tiny": 64, "other": 64}, has_vae=lambda _: True)
MODEL = {"name": "tiny", "sha256": None}
# Values of the fields whose limits do not say what they can be.
VALUES: dict[str, tuple[Any, ...]] = {
    "prompt": ("a cat, (fluffy:1.2)", "a\nNegative prompt: b", " \n"),
    "sampler": ("heun", "ddim"),
    "schedule": ("karras", "default"),
    "model": ("other",),
}
# What else a field needs to have an effect.
BESIDE: dict[str, dict[str, Any]] = {
    "inpaint_padding": {"inpaint_area": "masked"},
    # No text holds a control image; those that take the job's own image come back.
    "controlnets": {"image": "aGk=", "mask": "aGk="},
    "ip_adapters": {"image": "aGk="},
    # In the syntax that has tags they come back as tags: see test_tags.py.
    "loras": {"prompt_syntax": "comfy"},
}
# It says how many images there are; each text is of one.
NOT_HELD = {"num_images"}


@dataclass(frozen=True, kw_only=True)
class Border:
    width: int = option(8, low=0, high=64, label="Border width")
    colour: str = option("white", choices=("white", "black"))


@dataclass(frozen=True)
class Later(Request):
    """Fields of every type, with a label and without."""

    sharpness: float = option(0.5, low=0, high=2, label="Sharpness")
    softness: float = option(0.5, low=0, high=2)
    mirrored: bool = option(default=False, label="Mirrored")
    rounds: int | None = option(None, low=1, high=3)
    style: str = option("plain", choices=("plain", "framed"), label="Style")
    border: Border | None = option(None, acts_with=("image",))


LATER = job_record(Later)


def values(field: Field) -> Iterator[Any]:
    """Values that a field can have, others than its default among them."""
    if field.name in VALUES:
        yield from VALUES[field.name]
    elif field.record is not None and field.is_list:
        item = {inner.name: next(values(inner)) for inner in field.record if inner.required}
        yield [item, item]
        yield from ([{**item, inner.name: value}] for inner in field.record for value in values(inner))
    elif field.record is not None:
        yield {}
        for inner in field.record:
            yield from ({inner.name: value} for value in values(inner))
    elif field.type is bool:
        yield not field.default
    elif field.choices:
        yield from field.choices
    elif field.type is int:
        step = field.multiple_of or 1
        least = max(field.low or 0, 0)
        yield from (int(least) + step, int(least) + 2 * step)
    elif field.type is float:
        least, most = field.low or field.above or 0, field.high if field.high is not None else 2
        yield from (least + (most - least) / 4, least + (most - least) / 3)
    else:
        yield from ("a", "a, b: c")


def job_with(field: Field, value: Any, record: Record) -> Job:
    """A job with this value, the images that the value acts only with, and a sampler that has the option."""
    fields = {"prompt": "x", "seed": 5, "width": 64, "height": 64, field.name: value, **BESIDE.get(field.name, {})}
    if {"image", "mask"} & set(field.acts_with):
        fields["image"] = "aGk="
    if "mask" in field.acts_with:
        fields["mask"] = "aGk="
    samplers = ["dpmpp_2m"] if field.name in ("sampler", "schedule") else list(SOLVERS)
    for sampler in samplers:
        try:
            job = parse_request({"sampler": sampler, **fields}, LIMITS, record=record)
        except InvalidRequest as error:
            reason = error
        else:
            image = None if job.source is None else np.zeros((64, 64, 3), np.uint8)
            mask = None if job.mask_source is None else np.zeros((64, 64), np.uint8)
            return replace(job, request=replace(job.request, image=image, mask=mask))
    raise reason


CASES = [
    pytest.param(record, field, value, id=f"{field.name}-{index}-{name}")
    for name, record in {"today": JOB, "later": LATER}.items()
    for field in Record.of(record.owners[0]).with_sources()
    if field.shown and field.name not in NOT_HELD
    for index, value in enumerate(values(field))
]


@pytest.mark.parametrize(("record", "field", "value"), CASES)
def test_a_value_comes_back_from_text_and_object(record: Record, field: Field, value: Any) -> None:
    job = job_with(record[field.name], value, record)
    images = {"image": job.source, "mask": job.mask_source}
    written = infotext(job, job.request.seed, MODEL, record)
    again = parse_request({"parameters": written, **images}, LIMITS, record=record)
    wanted = replace(job.request, image=None, mask=None)
    assert again.request == replace(wanted, scale=wanted.guidance_scale, do_scale=True), written
    assert again.warnings == ()
    from_object = parse_request({"parameters": parameters(job, record), **images}, LIMITS, record=record)
    assert from_object.request == wanted


def test_image_prompts_take_all_but_their_images_from_a_text() -> None:
    unit = {"model": "plus", "image": "aGk=", "weight": 0.5}
    job = parse_request({"prompt": "x", "seed": 5, "ip_adapters": [unit]}, LIMITS)
    written = infotext(job, 5, MODEL)
    assert "aGk=" not in written and "plus" in written
    for text in (written, parameters(job)):
        again = parse_request({"parameters": text}, LIMITS)
        assert again.request.ip_adapters == ()
        ignored = "ip_adapters was ignored: send the images again, as ip_adapters[0].image"
        assert again.warnings == (f"parameters: {ignored}",)
        again = parse_request({"parameters": text, "ip_adapters": [{"image": "aGk="}]}, LIMITS)
        assert again.request.ip_adapters == job.request.ip_adapters and not again.warnings
