"""A job's JSON -> one frozen `Job`, or one error that names every bad field. Nothing is ignored.

The fields of the core are lines of `sd_core.request.Request`, the worker's own are lines of `Door`; all else (defaults,
limits, aliases, errors, the response, the documentation) is derived from these lines. A body of another tool's API is
translated into a payload of these fields before it is checked, by one function per API, and filled from `parameters`.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NewType, TypeVar

from sd_core.checks import Unfit, check, check_value, require, shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Record, make, option
from sd_core.nested import MIN_SIDE, Hires
from sd_core.pipeline.complete import check_hires, complete, find_model, implied, unusable, without_effect
from sd_core.request import Request
from sd_core.sampling.registry import joined_name
from worker.api.a1111 import named_as_written, translate
from worker.api.found import PREFIX
from worker.api.names import a1111_labels, scheduler_meant
from worker.api.parameters import fill

T = TypeVar("T")

# A record of how an image was made: a text, an object, or a picture that carries one. `parameters.fill` reads it.
Recorded = NewType("Recorded", object)


@dataclass(frozen=True, kw_only=True)
class Door:
    """The fields of a job that the core does not know."""

    uid: str = option(
        filled="8 random hex digits",
        min_length=1,
        max_length=128,
        any_character=True,
        shown=False,
        meaning="comes back unchanged",
    )
    output_format: str = option("png", choices=("png", "jpeg", "webp"))
    output_quality: int = option(95, low=1, high=100, meaning="of jpeg and webp")
    preview: bool = option(default=False, shown=False, meaning="true: progress comes with a small picture")
    parameters: Recorded | None = option(
        None,
        aliases=("infotext",),
        private=True,
        shown=False,
        meaning="fills every field that the job itself does not name; see below",
    )


def _sampler_to_text(request: Request) -> str:
    return a1111_labels(request.sampler, request.schedule)[0]


def _schedule_to_text(request: Request) -> str:
    return a1111_labels(request.sampler, request.schedule)[1]


def _hires_sampler_to_text(hires: Hires) -> str | None:
    return None if hires.sampler is None or hires.schedule is None else a1111_labels(hires.sampler, hires.schedule)[0]


def _hires_schedule_to_text(hires: Hires) -> str | None:
    return None if hires.sampler is None or hires.schedule is None else a1111_labels(hires.sampler, hires.schedule)[1]


def job_record(request: type[Request] = Request, door: type[Door] = Door) -> Record:
    """The record of a job: the core's fields, whose samplers are spelled as A1111 does, and the door's."""
    record = Record.of(request, door).with_sources()
    hires = record["hires"]
    assert hires.record is not None
    second = hires.record.with_field(replace(hires.record["sampler"], to_text=_hires_sampler_to_text))
    second = second.with_field(replace(second["schedule"], to_text=_hires_schedule_to_text))
    record = record.with_field(replace(hires, record=second))
    record = record.with_field(replace(record["sampler"], to_text=_sampler_to_text))
    return record.with_field(replace(record["schedule"], label="Schedule type", to_text=_schedule_to_text))


JOB = job_record()


@dataclass(frozen=True)
class Limits:
    """What bounds a job beside its fields: the operator's pixel limit, and each checkpoint's native side in pixels.

    The first one is the default. A lookup may raise `InvalidRequest` if the file cannot be used. `has_vae` says whether
    there is a VAE of that name.
    """

    max_pixels: int
    native_sizes: Mapping[str, int]
    has_vae: Callable[[str], bool] = lambda _: False


@dataclass(frozen=True)
class Job:
    """One valid job.

    `source` is where its image comes from, `mask_source` its mask, `hint_sources` the image of each of its ControlNets,
    and `reference_sources` of its IP-Adapters, None for one that takes the job's own. Until they are loaded,
    `request` has none, and the model's size unless the job asks for one; `width` and `height` are what it asks for.
    """

    request: Request
    door: Door
    source: str | None
    mask_source: str | None
    hint_sources: tuple[str | None, ...]
    reference_sources: tuple[str | None, ...]
    width: int | None
    height: int | None
    warnings: tuple[str, ...]

    @property
    def values(self) -> dict[str, Any]:
        """The value of each field by its name."""
        return {**vars(self.door), **vars(self.request)}

    def of_image(self, index: int) -> "Job":
        """The job of this image alone, which generates it again."""
        return replace(self, request=self.request.of_image(index))

    @property
    def sampler_name(self) -> str:
        return joined_name(self.request.sampler, self.request.schedule)


def new_uid() -> str:
    return secrets.token_hex(4)


def uid_of(payload: object) -> str:
    """The uid of the response to `payload`, even to an invalid one: its own if that is valid, else a new one."""
    uid = payload.get("uid") if isinstance(payload, dict) else None
    try:
        checked: str = check_value(JOB["uid"], uid)
    except Unfit:
        return new_uid()
    return checked


def parse_request(payload: object, limits: Limits, uid: str | None = None, record: Record = JOB) -> Job:
    """Check a job's `input` and fill in every default; a job without a uid gets `uid`, or a new one.

    Raises `InvalidRequest` whose text names each bad field, its value, its limit and the nearest known name.
    """
    if payload is None:
        raise InvalidRequest("input: is missing; it holds the job's fields, at least prompt")
    if not isinstance(payload, dict):
        raise InvalidRequest(f"input: {shorten(payload)} is not an object of fields")
    body = translate(payload, record)
    meant = scheduler_meant(body.payload, record)
    filled = fill(body.payload, record, meant, limits.native_sizes, limits.has_vae)
    checked = check(record, filled.payload, meant)
    problems = [named_as_written(problem) for problem in checked.problems] + unusable(checked)
    values = implied(checked)
    first_model = next(iter(limits.native_sizes))
    model = _attempt(problems, lambda: find_model(values["model"], limits.native_sizes)) or first_model
    native_size = _attempt(problems, lambda: limits.native_sizes[model]) or MIN_SIDE
    request_type, door_type = record.owners
    request = _attempt(
        problems,
        # A prompt that is missing is among the problems; the sampler is still looked up.
        lambda: complete(request_type, {"prompt": "", **values}, model, native_size),
    )
    _attempt(problems, lambda: _check_pixels(values, native_size, limits.max_pixels))
    require(problems)
    assert request is not None  # else there was a problem
    door = make(door_type, {**values, "uid": values["uid"] or uid or new_uid()})
    written = checked.written | {name: f"{PREFIX}.{name}" for name in filled.names}
    idle = without_effect(record, replace(checked, written=written))
    warnings = (*body.warnings, *filled.warnings, *idle)
    hints = tuple(unit.image for unit in values["controlnets"])
    references = tuple(unit.image for unit in values["ip_adapters"])
    sources = values["image"], values["mask"], hints, references
    return Job(request, door, *sources, values["width"], values["height"], warnings)


def _attempt(problems: list[str], attempt: Callable[[], T]) -> T | None:
    """What `attempt` returns; None if it raises `InvalidRequest`, whose text is added to the problems."""
    try:
        return attempt()
    except InvalidRequest as error:
        problems.append(str(error))
        return None


def _check_pixels(values: Mapping[str, Any], native_size: int, max_pixels: int) -> None:
    count, width, height = values["num_images"], values["width"], values["height"]
    limit = f"over this worker's limit of {max_pixels:,} (SD_MAX_PIXELS)"
    draws_part = values["inpaint_area"] == "masked" and (values["mask"] is not None or values["outpaint"] is not None)
    if values["image"] is not None and not draws_part and (width is None or height is None):
        # The missing sides will be chosen to fit, if anything fits.
        min_pixels = (width or MIN_SIDE) * (height or MIN_SIDE) * count
        if min_pixels > max_pixels:
            raise InvalidRequest(f"num_images: {count} images are at least {min_pixels:,} pixels, {limit}")
        return
    width, height = width or native_size, height or native_size
    pixels = width * height * count
    if pixels > max_pixels:
        raise InvalidRequest(f"width x height x num_images: {width} x {height} x {count} is {pixels:,} pixels, {limit}")
    check_hires(values["hires"], (width, height), count, max_pixels)
