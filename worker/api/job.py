"""A job's JSON -> one frozen `ParsedJob`, or one error that names every bad field. Nothing is ignored."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from sd_core.errors import InvalidRequest
from sd_core.request import Request
from sd_core.sampling.registry import joined_name, resolve
from worker.api.fields import ALIASES, NULLABLE, Fields, shorten, unknown_field, violations

MOST_PROBLEMS = 30


@dataclass(frozen=True)
class Limits:
    """What bounds a job beside its fields: the operator's pixel limit and the checkpoint's native side."""

    max_pixels: int
    native_size: int


@dataclass(frozen=True)
class ParsedJob:
    """One valid job. `width` and `height` are None where the picture that came with it decides them."""

    uid: str
    prompt: str
    negative_prompt: str
    steps: int
    scale: float
    do_scale: bool
    seed: int
    sampler: str
    schedule: str
    width: int | None
    height: int | None
    num_images: int
    image: str | None
    strength: float
    output_format: str
    preview: bool
    warnings: tuple[str, ...]

    @property
    def sampler_name(self) -> str:
        return joined_name(self.sampler, self.schedule)

    @property
    def guidance_scale(self) -> float:
        return self.scale if self.do_scale else 1.0

    def request(self, width: int, height: int, image: np.ndarray | None = None) -> Request:
        """What the engine is asked, at the final size; `image` is uint8 (height, width, 3)."""
        return Request(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            seed=self.seed,
            width=width,
            height=height,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            sampler=self.sampler,
            schedule=self.schedule,
            num_images=self.num_images,
            image=image,
            strength=self.strength,
        )


def new_uid() -> str:
    return secrets.token_hex(4)


def uid_of(payload: object) -> str:
    """The uid that an answer to `payload` carries, also where it is refused: its own, if valid."""
    uid = payload.get("uid") if isinstance(payload, dict) else None
    if isinstance(uid, str) and 1 <= len(uid) <= 128 and _is_unicode(uid):
        return uid
    return new_uid()


def parse_request(payload: object, limits: Limits, uid: str | None = None) -> ParsedJob:
    """Check a job's `input` and fill in every default; a job without a uid gets `uid`, or a new one.

    Raises `InvalidRequest` whose text names each bad field, its value, its limit and the nearest known name.
    """
    if payload is None:
        raise InvalidRequest("input: is missing; it holds the job's fields, at least prompt")
    if not isinstance(payload, dict):
        raise InvalidRequest(f"input: {shorten(payload)} is not an object of fields")
    values, written, problems = _canonical(payload)
    fields, bad = _validated(values, written)
    problems += bad
    _check(problems, lambda: _refuse_mask(fields, written))
    _check(problems, lambda: _refuse_nul("prompt", fields.prompt))
    _check(problems, lambda: _refuse_nul("negative_prompt", fields.negative_prompt))
    _check(problems, lambda: resolve(fields.sampler, fields.schedule))
    _check(problems, lambda: _check_pixels(fields, limits))
    if problems:
        more = len(problems) - MOST_PROBLEMS
        shown = "; ".join(problems[:MOST_PROBLEMS])
        raise InvalidRequest(shown + (f"; and {more:,} more" if more > 0 else ""))
    return _parsed(fields, values, written, limits, uid)


def _canonical(payload: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The payload by canonical names, the name that the job used for each, and what is wrong with names."""
    values: dict[str, Any] = {}
    written: dict[str, str] = {}
    problems: list[str] = []
    for name, value in payload.items():
        field = ALIASES.get(name, name) if isinstance(name, str) else None
        if field not in Fields.model_fields:
            # Beyond what is shown they are only counted: there may be a million, and near names take a while.
            problems.append(unknown_field(name) if len(problems) < MOST_PROBLEMS else "")
            continue
        if name == "init_images" and value is not None:
            if not isinstance(value, list) or len(value) != 1:
                count = f"a list of {len(value)}" if isinstance(value, list) else shorten(value)
                problems.append(f"init_images: {count} is not a list of one picture")
                continue
            value = value[0]
        if name == "scheduler" and _is_schedule(value):
            field = "schedule"
        if value is None and field in NULLABLE:
            continue
        if field in values:
            if not _same(values[field], value):
                problems.append(f"{written[field]} and {name}: two names of one field with different values")
            continue
        values[field], written[field] = value, name
    return values, written, problems


def _validated(values: dict[str, Any], written: dict[str, str]) -> tuple[Fields, list[str]]:
    """The fields that are good by themselves, with defaults for the others, and what is wrong with those."""
    try:
        return Fields.model_validate(values), []
    except ValidationError as error:
        bad = violations(error, written)
        good = {name: value for name, value in values.items() if name not in bad}
        return Fields.model_validate({"prompt": "-", **good}), list(bad.values())


def _check(problems: list[str], check: Callable[[], object]) -> None:
    try:
        check()
    except InvalidRequest as error:
        problems.append(str(error))


def _refuse_mask(fields: Fields, written: dict[str, str]) -> None:
    if fields.mask is not None:
        raise InvalidRequest(f"{written['mask']}: inpainting is not available yet, so a mask cannot be used")


def _refuse_nul(name: str, text: str) -> None:
    if "\0" in text:
        raise InvalidRequest(f"{name}: holds a NUL character at position {text.index(chr(0))}")


def _check_pixels(fields: Fields, limits: Limits) -> None:
    count = fields.num_images
    if fields.image is not None and (fields.width is None or fields.height is None):
        # The missing sides will be chosen to fit, if anything fits: a picture has at least 64 x 64 pixels.
        least = (fields.width or 64) * (fields.height or 64) * count
        if least > limits.max_pixels:
            raise InvalidRequest(f"num_images: {count} pictures are at least {least:,} pixels, {_over(limits)}")
        return
    width, height = fields.width or limits.native_size, fields.height or limits.native_size
    if width * height * count > limits.max_pixels:
        raise InvalidRequest(
            f"width x height x num_images: {width} x {height} x {count} is {width * height * count:,} "
            f"pixels, {_over(limits)}"
        )


def _over(limits: Limits) -> str:
    return f"over this worker's limit of {limits.max_pixels:,} (SD_MAX_PIXELS)"


def _parsed(
    fields: Fields, values: dict[str, Any], written: dict[str, str], limits: Limits, uid: str | None
) -> ParsedJob:
    solver, schedule = resolve(fields.sampler, fields.schedule)
    has_image = fields.image is not None
    return ParsedJob(
        uid=fields.uid or uid or new_uid(),
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt,
        steps=fields.steps,
        scale=fields.scale,
        do_scale=fields.do_scale,
        seed=secrets.randbelow(2**32) if fields.seed in (None, -1) else fields.seed,
        sampler=solver,
        schedule=schedule,
        width=fields.width if has_image else fields.width or limits.native_size,
        height=fields.height if has_image else fields.height or limits.native_size,
        num_images=fields.num_images,
        image=fields.image,
        strength=fields.strength,
        output_format=fields.output_format,
        preview=fields.preview,
        warnings=tuple(_without_effect(fields, values, written)),
    )


def _without_effect(fields: Fields, values: dict[str, Any], written: dict[str, str]) -> list[str]:
    """A warning for each field that was given and does nothing in this job."""
    warnings = []
    if "strength" in values and fields.image is None:
        warnings.append(f"{written['strength']} did nothing: it acts only with an image")
    if "scale" in values and not fields.do_scale:
        warnings.append(f"{written['scale']} did nothing: do_scale is false")
    if fields.negative_prompt and (not fields.do_scale or fields.scale <= 1):
        reason = "do_scale is false" if not fields.do_scale else "it acts only with a scale over 1"
        warnings.append(f"negative_prompt did nothing: {reason}")
    return warnings


def _is_schedule(value: object) -> bool:
    if not isinstance(value, str) or len(value) > 100:
        return False
    try:
        resolve(None, value)
    except InvalidRequest:
        return False
    return True


def _same(one: object, other: object) -> bool:
    """Equal as JSON values: 1 and 1.0 are, 1 and true are not."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _is_unicode(text: str) -> bool:
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)
