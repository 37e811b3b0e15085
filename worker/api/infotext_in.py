"""An infotext -> values of a job's fields.

The format is the one of AUTOMATIC1111's web UI: the prompt, "Negative prompt: ...", and a last line of `Label: value`
pairs with commas between, a value perhaps quoted as a JSON string. Forge, SD.Next and stable-diffusion.cpp write it
too. Labels are those of the record's fields, so a field with a label is read as soon as it exists.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sd_core.checks import shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Field, Record
from worker.api.found import PREFIX, Found, usable

MAX_TEXT = 150_000  # characters; two prompts of control characters, quoted twice, fit
MIN_PAIRS = 3  # with fewer, the last line belongs to a prompt
MAX_LABEL = 64
MAX_NAMED = 12  # labels that a warning lists
NEGATIVE = "Negative prompt:"
EXACT = "Exact fields"  # of this worker: what the format cannot hold, as one JSON object
RNG = "RNG"

# Other labels of the same values, in lower case.
SYNONYMS = {
    "scheduler": "schedule type",
    "schedule": "schedule type",
    "eta ddim": "eta",
    "seed resize": "seed resize from",
    "hires cfg scale": "hires cfg",
}
# The GPU's generator as other tools call it.
RNG_NAMES = {"gpu": "nv", "cuda": "nv", "nv": "nv", "cpu": "cpu"}
BOOLS: Mapping[str, bool] = {"true": True, "false": False}
# Labels of records that change no image.
ASIDE = frozenset({
    "version", "app", "user", "created", "model hash", "vae hash", "ti hashes", "lora hashes", "hashes",
    "init image hash", "operations", "pipeline", "backend", "parser", "index", "batch", "batch size", "batch pos",
})  # fmt: skip

Path = tuple[Field, ...]
"""From a field of the record down to a field of a nested one."""


def read_infotext(text: str, record: Record) -> Found:
    """The values of an infotext; what it names and this worker does not have is in the warnings.

    Without a line of parameters, the text is a prompt. Raises `InvalidRequest` for a text or a prompt that is too long.
    """
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"{PREFIX}: has {len(text):,} characters, at most {MAX_TEXT:,} are allowed")
    prompt, negative, pairs = split_infotext(text)
    values: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    if not pairs:
        found = usable(record, values, {})
        return Found(found.values, (f"{PREFIX}: the text has no line of parameters and was used as the prompt",))
    written: dict[str, str] = {}
    warnings: list[str] = []
    unknown: list[str] = []
    paths = _paths(record, pairs)
    for label, value in pairs.items():
        key = _key(label)
        if key in paths:
            try:
                _put(values, paths[key], _values_of(paths[key][-1], value), written, label)
            except ValueError:
                warnings.append(f"{PREFIX}: {label} was ignored: {shorten(value)} cannot be read")
        elif (listed := _list_of(key, record)) is not None:
            try:
                values.setdefault(listed.name, []).append(dict(_values_of(listed, value)))
            except ValueError:
                warnings.append(f"{PREFIX}: {label} was ignored: {shorten(value)} cannot be read")
        elif key not in ASIDE | {EXACT.lower(), RNG.lower()}:
            unknown.append(label)
    if unknown:
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        warnings.append(f"{PREFIX}: these labels are unknown and were ignored: {', '.join(unknown[:MAX_NAMED])}{more}")
    warnings += _generator(values, pairs)
    values |= _exact(pairs.get(EXACT), warnings)
    found = usable(record, values, written)
    return Found(found.values, (*warnings, *found.warnings))


def split_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """The prompt, the negative prompt, and the text behind each label."""
    lines = text.rstrip("\n").split("\n")
    pairs = dict(_pairs(lines[-1]))
    if len(pairs) < MIN_PAIRS:
        pairs = {}
    else:
        lines.pop()
    starts = [index for index, line in enumerate(lines) if line.startswith(NEGATIVE)]
    if not starts:
        return "\n".join(lines), "", pairs
    first = lines[starts[0]].removeprefix(NEGATIVE).removeprefix(" ")
    return "\n".join(lines[: starts[0]]), "\n".join([first, *lines[starts[0] + 1 :]]), pairs


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """Label and value of each pair; what is not a pair is skipped. Takes time linear in the line's length."""
    position = colon = 0
    while True:
        if colon < position or colon == 0:
            colon = line.find(":", position)
        if colon < 0:
            return
        comma = line.find(",", position, colon)
        if comma >= 0:
            position = comma + 1
            continue
        label = line[position:colon].strip()
        value, position = _value(line, colon + 1)
        if label and len(label) <= MAX_LABEL:
            yield label, value


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins at `start`, and where the next pair may begin."""
    while line[start : start + 1] == " ":
        start += 1
    if line[start : start + 1] == '"':
        try:
            value, end = json.JSONDecoder().raw_decode(line, start)
        except ValueError:
            pass  # not quoted after all
        else:
            comma = line.find(",", end)
            return str(value), comma + 1 if comma >= 0 else len(line)
    comma = line.find(",", start)
    end = comma if comma >= 0 else len(line)
    return line[start:end].strip(), end + 1


def _key(label: str) -> str:
    key = label.lower()
    return SYNONYMS.get(key, key)


def _paths(record: Record, pairs: Mapping[str, str]) -> dict[str, Path]:
    """Which field each label means here.

    A label that a nested record shares with another field means the nested one if the text has any other label of that
    record: "Denoising strength" is the second pass's beside "Hires upscaler".
    """
    given = {_key(label) for label in pairs}
    outer = {_key(field.label): (field,) for field in record if field.label and not field.is_list}
    paths: dict[str, Path] = dict(outer)
    for field in record:
        inner = dict(_nested(field))
        if (inner.keys() - outer.keys()) & given:
            paths |= inner
    return paths


def _list_of(key: str, record: Record) -> Field | None:
    """The list whose items have this label with a number behind it."""
    label, _, number = key.rpartition(" ")
    return next(
        (field for field in record if field.is_list and number.isdecimal() and _key(field.label) == label), None
    )


def _nested(field: Field) -> Iterator[tuple[str, Path]]:
    """The labels of a nested record; those of a list's items have no place of their own."""
    if field.is_list:
        return
    for inner in field.record or ():
        if inner.label:
            yield _key(inner.label), (field, inner)
        for key, path in _nested(inner):
            yield key, (field, *path)


def _values_of(field: Field, text: str) -> Mapping[str, Any]:
    """Raises `ValueError` for a text that is not one of this field."""
    if field.from_text is not None:
        return field.from_text(text)
    if field.type in (int, float):
        return {field.name: field.type(text)}
    if field.type is bool:
        return {field.name: BOOLS.get(text.lower(), text)}
    return {field.name: {choice.lower(): choice for choice in field.choices}.get(text.lower(), text)}


def _put(values: dict[str, Any], path: Path, found: Mapping[str, Any], written: dict[str, str], label: str) -> None:
    for field in path[:-1]:
        values = values.setdefault(field.name, {})
    values |= found
    prefix = "".join(f"{field.name}." for field in path[:-1])
    written |= {prefix + name: label for name in found}


def _generator(values: dict[str, Any], pairs: Mapping[str, str]) -> list[str]:
    """Set `rng`. Without `RNG` the image's noise came from a GPU's generator: that is the web UI's default."""
    given = next((value for label, value in pairs.items() if label.lower() == RNG.lower()), "gpu")
    rng = RNG_NAMES.get(given.lower())
    if rng is None:
        values.pop("rng", None)
        return [f"{PREFIX}: {RNG} was ignored: {shorten(given)} is not a random number generator of this worker"]
    values["rng"] = rng
    return []


def _exact(text: str | None, warnings: list[str]) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if isinstance(values, dict):
        return values
    warnings.append(f"{PREFIX}: {EXACT} was ignored: it is not a JSON object")
    return {}
