"""A job's field `parameters`: a record of how an image was made, which fills every field that the job does not name.

It is an infotext, a response's `parameters` object, a body of A1111's API, or the graph of a picture by ComfyUI.
A picture that carries one of these is replaced by its text before a job is parsed.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sd_core.additions import IMAGED, OWN_VAE
from sd_core.checks import check, require, same, shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Record
from sd_core.pipeline.complete import find_model
from sd_core.sampling.registry import resolve
from worker.api.a1111 import translate
from worker.api.comfyui import is_graph, read_graph
from worker.api.found import PREFIX, Found, unfit_options
from worker.api.infotext_in import read_infotext
from worker.api.names import scheduler_meant

NAMES = (PREFIX, "infotext")
MODEL_NAMES = {"model", "name", "path"}
MAX_JSON = 1 << 20  # characters
# How base64 of a PNG, a JPEG and a WebP file begins.
PICTURES = ("iVBORw0KGgo", "/9j/", "UklGR")


@dataclass(frozen=True)
class Filled:
    """A job's payload with the values that its `parameters` brought, their names, and warnings."""

    payload: dict[str, Any]
    names: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


def picture_of(payload: object) -> str | None:
    """The picture that `parameters` names, if it is one: a URL, a data URI or base64 of a PNG, JPEG or WebP file."""
    value = _given(payload) if isinstance(payload, dict) else None
    if not isinstance(value, str):
        return None
    start = value[:64].lstrip()
    is_address = start.lower().startswith(("http://", "https://")) and not any(map(str.isspace, value.strip()))
    return value if is_address or start.lower().startswith("data:") or start.startswith(PICTURES) else None


def with_text(payload: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The payload with the text of a picture in the picture's place."""
    return {**{name: value for name, value in payload.items() if name not in NAMES}, PREFIX: text}


def fill(
    payload: Mapping[str, Any],
    record: Record,
    meant: Mapping[str, str],
    models: Collection[str],
    has_vae: Callable[[str], bool],
) -> Filled:
    """The payload without `parameters`, and with all that it brings and the payload does not name.

    `meant` says of a name that could be two fields' which one it means here; `models` and `has_vae` say which
    files there are. Raises
    `InvalidRequest` for what is not a record of an image.
    """
    value = _given(payload)
    own = {name: given for name, given in payload.items() if name not in NAMES}
    if value is None:
        return Filled(own)
    found = _with_known_vae(_with_known_model(_read(value, record), models), has_vae)
    named = _named(own, record, meant)
    for name in IMAGED:
        own, found = _with_images(name, own, named, found)
    brought = {name: brought for name, brought in found.values.items() if name not in named}
    unfit = _unfit(named, brought)
    brought = {name: value for name, value in brought.items() if name not in unfit}
    warnings = (*found.warnings, *(f"{PREFIX}: {name} was ignored: {reason}" for name, reason in unfit.items()))
    return Filled({**own, **brought}, frozenset(brought), warnings)


def _with_images(
    name: str, own: dict[str, Any], named: Mapping[str, Any], found: Found
) -> tuple[dict[str, Any], Found]:
    """Both with only those entries of the list `name` that have an image, which no record holds.

    A job that sends the images again, in that list, has all else of each entry from the record.
    """
    units = [_as_fields(unit) for unit in found.values.get(name) or ()]
    given = own.get(name)
    if name in named and isinstance(given, list):
        recorded = [*units, *([{}] * len(given))][: len(given)]
        merged = [
            {**unit, **sent} if isinstance(sent, dict) and not MODEL_NAMES & sent.keys() else sent
            for unit, sent in zip(recorded, given, strict=True)
        ]
        return {**own, name: merged}, found
    kept = [unit for unit in units if "image" in unit or "image" in named]
    values = {other: value for other, value in found.values.items() if other != name} | ({name: kept} if kept else {})
    warnings = found.warnings
    if len(kept) < len(units):
        warnings = (*warnings, f"{PREFIX}: {name} was ignored: send the images again, as {name}[0].image")
    return own, Found(values, warnings)


def _as_fields(unit: Any) -> dict[str, Any]:
    """The fields of an entry that a record names."""
    fields = unit if isinstance(unit, dict) else vars(unit)
    return {name: value for name, value in fields.items() if value is not None}


def _named(own: Mapping[str, Any], record: Record, meant: Mapping[str, str]) -> dict[str, Any]:
    """The value of each field that the job itself names; null means left out if the field allows it."""
    named = {}
    for name, value in own.items():
        field = record.names.get(meant.get(name, name)) if isinstance(name, str) else None
        if field is not None and not (value is None and field.nullable):
            named[field.name] = value
    return named


def _given(payload: Mapping[str, Any]) -> Any:
    """The value of `parameters`, by whichever name; None if it is left out. Raises `InvalidRequest` for two."""
    values = [value for name in NAMES if (value := payload.get(name)) not in (None, "", {})]
    if len(values) == 2 and not same(*values):
        raise InvalidRequest(f"{' and '.join(NAMES)}: two names of one field with different values")
    return values[0] if values else None


def _read(value: Any, record: Record) -> Found:
    if isinstance(value, str):
        parsed = _json(value)
        return read_infotext(value, record) if parsed is None else _read(parsed, record)
    if not isinstance(value, dict):
        raise InvalidRequest(f"{PREFIX}: {shorten(value)} is not a text, an object or a picture")
    return read_graph(value, record) if is_graph(value) else _object(value, record)


def _json(text: str) -> dict[str, Any] | None:
    """The object that a text is, if it is JSON: a prompt may begin with a brace, too."""
    if text.lstrip()[:1] != "{" or len(text) > MAX_JSON:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(given: Mapping[str, Any], record: Record) -> Found:
    """A job's fields, as a response's `parameters` has them; they are checked as strictly as a job's own."""
    body = translate(given, record)
    fields = {"prompt": "", **body.payload}
    checked = check(record, fields, scheduler_meant(fields, record), prefix=f"{PREFIX}.")
    problems = list(checked.problems)
    problems += [f"{PREFIX}.{name}: parameters hold no parameters" for name in NAMES if name in fields]
    # Of a nested record what it holds itself: the job fills in what is open.
    nested = {field.name for field in record if field.record is not None and not field.is_list}
    values = {
        name: fields[written] if name in nested else checked.values[name]
        for name, written in checked.written.items()
        if written in body.payload
    }
    if values.get("sampler") is not None:
        try:
            values["sampler"], values["schedule"] = resolve(values["sampler"], values.get("schedule"))
        except InvalidRequest as error:
            problems.append(f"{PREFIX}.{error}")
    require(problems)
    return Found(values, body.warnings)


def _with_known_model(found: Found, models: Collection[str]) -> Found:
    """An image made by a checkpoint that is not here is made by the job's or the default one, with a warning."""
    name = found.values.get("model")
    if name is None:
        return found
    try:
        return Found({**found.values, "model": find_model(name, models)}, found.warnings)
    except InvalidRequest as error:
        others = {field: value for field, value in found.values.items() if field != "model"}
        return Found(others, (*found.warnings, f"{PREFIX}: the model was ignored: {error}"))


def _with_known_vae(found: Found, has_vae: Callable[[str], bool]) -> Found:
    """As `_with_known_model`, of a VAE: the checkpoint's own is used."""
    name = found.values.get("vae")
    if not isinstance(name, str) or name in OWN_VAE or has_vae(name):
        return found
    others = {field: value for field, value in found.values.items() if field != "vae"}
    return Found(others, (*found.warnings, f"{PREFIX}: the vae was ignored: {shorten(name)} is not here"))


def _unfit(given: Mapping[str, Any], brought: Mapping[str, Any]) -> dict[str, str]:
    """Each value that was brought and that the job's own sampler cannot have, with the reason."""
    sampler = given.get("sampler", brought.get("sampler"))
    unfit = dict(unfit_options(sampler, brought))
    if "sampler" in given and "schedule" in brought and isinstance(sampler, str):
        try:
            resolve(sampler, brought["schedule"])
        except InvalidRequest as error:
            unfit["schedule"] = str(error)
    return unfit
