"""One field is one line: a copy of the record with one line more has the field everywhere."""

import inspect
import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from sd_core.errors import InvalidRequest
from sd_core.fields import Record, option
from sd_core.model import signature_of
from sd_core.request import Request
from worker.api.docs import table
from worker.api.infotext import infotext
from worker.api.job import JOB, Door, Job, Limits, job_record, parse_request
from worker.api.response import parameters
from worker.api.schema import schema

MODEL = {"name": "tiny", "sha256": None}


@dataclass(frozen=True)
class WithSharpness(Request):
    sharpness: float = option(
        0.5, low=0, high=2, aliases=("crispness",), label="Sharpness", meaning="how sharp the image is"
    )


@dataclass(frozen=True, kw_only=True)
class Border:
    width: int = option(8, low=0, high=64, aliases=("thickness",), label="Border width", meaning="in pixels")
    colour: str = option("white", choices=("white", "black"))


@dataclass(frozen=True)
class WithBorder(Request):
    border: Border | None = option(None, meaning="a frame")


@dataclass(frozen=True)
class WithFrames(Request):
    frames: tuple[Border, ...] = option((), max_items=2, flat=("thickness", "colour"), meaning="one around the other")


@dataclass(frozen=True, kw_only=True)
class Signed(Door):
    signature: str = option("", max_length=10, aliases=("signed_by",), label="Signature", meaning="who made it")


SHARP, FRAMED, SIGNED = job_record(WithSharpness), job_record(WithBorder), job_record(door=Signed)
SEVERAL = job_record(WithFrames)


def parse(record: Record, **fields: Any) -> Job:
    return parse_request({"prompt": "a cat", **fields}, Limits(2**22, {"tiny": 64}), record=record)


def problem(record: Record, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(record, **fields)
    return str(caught.value)


def test_a_field_of_the_core_is_validated_and_filled_in() -> None:
    assert parse(SHARP).values["sharpness"] == 0.5
    assert parse(SHARP, sharpness=1).values["sharpness"] == 1.0
    assert parse(SHARP, crispness=1.5).values["sharpness"] == 1.5
    assert problem(SHARP, crispness=3) == "crispness: 3 is not a number from 0 to 2"
    assert "two names of one field" in problem(SHARP, crispness=1, sharpness=2)
    assert problem(SHARP, sharpnes=1) == "sharpnes: unknown field, did you mean sharpness?"
    assert problem(JOB, sharpness=1).startswith("sharpness: unknown field")


def test_a_field_of_the_core_is_in_the_response_and_the_infotext() -> None:
    job = parse(SHARP, sharpness=1.25)
    assert parameters(job, SHARP)["sharpness"] == 1.25
    assert ", Sharpness: 1.25" in infotext(job, 1, MODEL, SHARP)


def test_a_field_of_the_core_is_in_the_table_the_schema_and_the_signature() -> None:
    assert "| `sharpness` | `crispness` | float | 0.5 | 0..2; how sharp the image is |" in table(SHARP)
    assert schema(SHARP)["properties"]["sharpness"] == {
        "type": "number", "minimum": 0, "maximum": 2, "default": 0.5,
        "description": "how sharp the image is; also accepted: crispness",
    }  # fmt: skip
    parameter = signature_of(Record.of(WithSharpness)).parameters["sharpness"]
    assert (parameter.kind, parameter.default, parameter.annotation) == (inspect.Parameter.KEYWORD_ONLY, 0.5, float)


def test_a_field_of_the_door_is_everywhere_but_in_the_core() -> None:
    job = parse(SIGNED, signed_by="me")
    assert parameters(job, SIGNED)["signature"] == "me"
    assert ", Signature: me, " in infotext(job, 1, MODEL, SIGNED)
    assert problem(SIGNED, signature="x" * 11) == "signature: has 11 characters, at most 10 are allowed"
    assert '| `signature` | `signed_by` | string | `""` | up to 10 characters; who made it |' in table(SIGNED)
    assert schema(SIGNED)["properties"]["signature"]["maxLength"] == 10
    assert not hasattr(job.request, "signature")


def test_a_nested_record_is_validated_under_its_own_name() -> None:
    assert parse(FRAMED).values["border"] is None
    assert parse(FRAMED, border={"thickness": 16}).values["border"] == Border(width=16, colour="white")
    assert problem(FRAMED, border={"thickness": 65, "colour": "red"}) == (
        "border.thickness: 65 is not a whole number from 0 to 64; border.colour: 'red' is not one of white, black"
    )
    assert problem(FRAMED, border={"colur": "red"}) == "border.colur: unknown field, did you mean border.colour?"
    assert problem(FRAMED, border=3) == "border: 3 is not an object of fields"


def test_a_nested_record_is_in_all_that_is_derived() -> None:
    job = parse(FRAMED, border={"width": 16})
    assert parameters(job, FRAMED)["border"] == {"width": 16, "colour": "white"}
    assert ", Border width: 16, " in infotext(job, 1, MODEL, FRAMED)
    assert "Border" not in infotext(parse(FRAMED), 1, MODEL, FRAMED)
    assert "| `border.width` | `thickness` | int | 8 | 0..64; in pixels |" in table(FRAMED)
    described = schema(FRAMED)["properties"]["border"]
    assert described["type"] == ["object", "null"]
    assert described["properties"]["colour"] == {"type": "string", "enum": ["white", "black"], "default": "white"}
    assert signature_of(Record.of(WithBorder)).parameters["border"].annotation == Border | None


def test_a_list_of_records_is_validated_item_by_item() -> None:
    assert parse(SEVERAL).values["frames"] == ()
    assert parse(SEVERAL, frames=None).values["frames"] == ()
    frames = parse(SEVERAL, frames=[{"thickness": 16}, Border(colour="black")]).values["frames"]
    assert frames == (Border(width=16), Border(colour="black"))
    assert problem(SEVERAL, frames=[{}, {"thickness": 65, "colur": "red"}]) == (
        "frames[1].colur: unknown field, did you mean frames[1].colour?; "
        "frames[1].thickness: 65 is not a whole number from 0 to 64"
    )
    assert problem(SEVERAL, frames=[Border(width=99)]).startswith("frames[0].width: 99 is not")
    assert problem(SEVERAL, frames={}) == "frames: an object is not a list of objects"
    assert problem(SEVERAL, frames=[[]]) == "frames[0]: a list is not an object of fields"
    assert problem(SEVERAL, frames=[{}] * 3) == "frames: has 3 entries, at most 2 are allowed"


def test_one_item_of_a_list_may_be_given_by_flat_names() -> None:
    assert parse(SEVERAL, thickness=16, colour="black").values["frames"] == (Border(width=16, colour="black"),)
    assert parse(SEVERAL, thickness=16, colour=None).values["frames"] == (Border(width=16),)
    assert problem(SEVERAL, thickness=65) == "thickness: 65 is not a whole number from 0 to 64"
    assert problem(SEVERAL, colour="black") == "colour: needs thickness"
    assert "two names of one field" in problem(SEVERAL, thickness=1, frames=[{"width": 1}])
    assert problem(SEVERAL, thiccness=1) == "thiccness: unknown field, did you mean thickness?"


def test_a_list_of_records_is_in_all_that_is_derived() -> None:
    job = parse(SEVERAL, thickness=16)
    assert parameters(job, SEVERAL)["frames"] == [{"width": 16, "colour": "white"}]
    text = infotext(job, 1, MODEL, SEVERAL)
    assert "Border width" not in text and '{\\"frames\\": [{\\"width\\": 16' in text
    assert parse(SEVERAL, parameters=text).request == replace(job.request, seed=1)
    assert parse(SEVERAL, parameters=text, thickness=8).values["frames"] == (Border(width=8),)
    rows = table(SEVERAL)
    assert "| `frames` | `thickness` with `colour` | list of objects | [] | at most 2; one around the other |" in rows
    assert "| `frames[].width` | `thickness` | int | 8 | 0..64; in pixels |" in rows
    described = schema(SEVERAL)["properties"]["frames"]
    assert described["type"] == ["array", "null"]
    assert (described["maxItems"], described["default"]) == (2, [])
    assert described["items"]["properties"]["width"]["type"] == "integer"
    parameter = signature_of(Record.of(WithFrames)).parameters["frames"]
    assert str(parameter.annotation).startswith("collections.abc.Sequence[")


def test_what_an_infotext_says_of_a_list_and_cannot_be_used_is_a_warning() -> None:
    items = [{"width": 16}, {"width": 65}]
    job = parse(SEVERAL, parameters=f"a cat\nSteps: 3, Seed: 1, Size: 64x64, RNG: CPU, {exact(frames=items)}")
    assert job.values["frames"] == (Border(width=16),)
    assert job.warnings == ("parameters: an entry was ignored: frames[1].width: 65 is not a whole number from 0 to 64",)
    job = parse(SEVERAL, parameters=f"a cat\nSteps: 3, Seed: 1, Size: 64x64, RNG: CPU, {exact(frames=5)}")
    assert job.warnings == ("parameters: frames was ignored: it is not a list of at most 2 objects",)


def exact(**fields: Any) -> str:
    return f"Exact fields: {json.dumps(json.dumps(fields))}"
