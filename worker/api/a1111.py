"""A txt2img or img2img body of AUTOMATIC1111's API -> a job's fields.

A name whose field this worker's record does not have is named in a warning, and works as soon as the record has it.
Clients such as webuiapi send every name always, so values that ask for nothing here are collected in one warning.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sd_core.checks import same, shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Record
from sd_core.sampling.registry import is_schedule, resolve
from worker.api.a1111_control import SCRIPT, UNITS, units_of
from worker.api.a1111_rules import IGNORED, RULES, SETTINGS, SHARED, Rule
from worker.api.found import unfit_options

FIELD_OF_UNITS = "controlnets"
CONTAINERS = ("override_settings", "alwayson_scripts")
SCRIPTS_OFF: tuple[Any, ...] = ({"args": []}, {"args": [False]})  # how clients send a script that is to do nothing
MAX_NAMED = 100  # names that a warning lists, and warnings about one name each
MAX_SHOWN = 64  # characters of a setting's or a script's name


@dataclass(frozen=True)
class Translated:
    """A payload of this worker's fields, and warnings."""

    payload: dict[str, Any]
    warnings: tuple[str, ...] = ()


def translate(payload: Mapping[str, Any], record: Record) -> Translated:
    """A job as it is; one with a name that only A1111's API has, in the fields of `record`.

    Raises `InvalidRequest` for a container that is not an object.
    """
    if not any(name in CONTAINERS or (name in RULES and name not in SHARED) for name in payload):
        return Translated(dict(payload))
    body, overruled = _folded(payload)
    return _Translation(body, record, overruled).run()


def named_as_written(problem: str) -> str:
    """A problem of a flat field of a second pass, such as `hr_scale`, by the name that it was sent by."""
    return re.sub(r"^hires\.(?=hr_)", "", problem)


def _folded(payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The body with one name for each pair that means one value, and the names that are overruled."""
    body = dict(payload)
    overruled = []
    count, name = body.pop("n_iter", None), body.pop("sampler_index", None)
    if count is not None:
        body["batch_size"] = count if body.get("batch_size") is None else _product(body["batch_size"], count)
    if name is not None and body.get("sampler_name") in (None, ""):
        body["sampler_name"] = name
    elif name is not None:
        overruled.append("sampler_index")
    hires = body.get("hr_resize_x") or body.get("hr_resize_y")
    if hires and body.pop("hr_scale", None) is not None:
        overruled.append("hr_scale")
    return body, overruled


def _product(one: Any, other: Any) -> Any:
    """The number of images; a factor that is not a whole number, for the field to refuse, if there is one."""
    for value in (one, other):
        if isinstance(value, bool) or not isinstance(value, int):
            return value
    return one * other


class _Translation:
    """One body being translated; `overruled` names what other names stand for already."""

    def __init__(self, body: Mapping[str, Any], record: Record, overruled: list[str]) -> None:
        self._body, self._record = body, record
        self._job: dict[str, Any] = {}
        self._nothing = overruled
        self._warnings: list[str] = []

    def run(self) -> Translated:
        for name, value in self._body.items():
            if name in CONTAINERS:
                self._open(name, value)
            elif name in RULES:
                self._take(name, RULES[name], value)
            else:
                self._job[name] = value  # one of this worker's own names, or an unknown one
        self._drop_unfit()
        if self._nothing:
            self._warnings.append(f"fields that ask for nothing here: {', '.join(self._nothing[:MAX_NAMED])}")
        return Translated(self._job, tuple(self._warnings))

    def _open(self, container: str, entries: Any) -> None:
        """Take each setting, or each script, by its name."""
        if not entries:
            self._nothing.append(container)
            return
        if not isinstance(entries, dict):
            raise InvalidRequest(f"{container}: {shorten(entries)} is not an object")
        rules, off = (SETTINGS, ()) if container == "override_settings" else ({}, SCRIPTS_OFF)
        for name, value in entries.items():
            if container == "alwayson_scripts" and isinstance(name, str) and name.lower() == SCRIPT:
                self._take_units(name, value)
                continue
            shown = name if isinstance(name, str) and name.isidentifier() and name.isascii() else shorten(name)
            self._take(f"{container}.{shown[:MAX_SHOWN]}", rules.get(name, Rule(nothing=off)), value)

    def _take(self, name: str, rule: Rule, value: Any) -> None:
        field = rule.field
        if name == "denoising_strength":
            field = self._strength()
            rule = rule if field is not None else IGNORED
        if self._asks_nothing(rule, value):
            self._nothing.append(name)
        elif field is None or not self._has(field):
            self._miss(name, field)
        else:
            self._put(name, field, rule.value(value))

    def _take_units(self, name: str, script: Any) -> None:
        """Take the ControlNets of the script of that name."""
        units = units_of(script)
        self._warnings += units.warnings
        if units.items and not self._has(FIELD_OF_UNITS):
            self._miss(UNITS, FIELD_OF_UNITS)
        elif units.items and self._body.get(FIELD_OF_UNITS):
            raise InvalidRequest(f"{UNITS} and {FIELD_OF_UNITS}: two ways to ask for one thing; leave one out")
        elif units.items:
            self._job[FIELD_OF_UNITS] = units.items
        else:
            self._nothing.append(f"alwayson_scripts.{name}")

    def _strength(self) -> str | None:
        """The field that `denoising_strength` means: the second pass' if there is no image; None without either."""
        if any(self._asks(name) for name in self._names_like("init_images")):
            return "strength"
        return "hires.strength" if self._asks("enable_hr") else None

    def _asks_nothing(self, rule: Rule, value: Any) -> bool:
        if rule.ignored or value is None or any(value == nothing and value is not True for nothing in rule.nothing):
            return True
        return bool(rule.beside) and not any(self._asks(name) for name in self._names_like(rule.beside))

    def _asks(self, name: str) -> bool:
        return not self._asks_nothing(RULES.get(name, Rule()), self._body.get(name))

    def _names_like(self, name: str) -> set[str]:
        """This name, and those of this worker's own for the same field."""
        field = self._record.names.get(name)
        own = () if field is None else (field.name, *field.aliases)
        return {name, *(each.removesuffix("[0]") for each in own)}

    def _has(self, field: str) -> bool:
        outer, _, inner = field.partition(".")
        names = self._record.names
        if outer not in names:
            return False
        nested = names[outer].record
        return not inner or (nested is not None and inner in nested.names)

    def _miss(self, name: str, field: str | None) -> None:
        if len(self._warnings) < MAX_NAMED:
            what = f"{field} is" if field is not None else "it is"
            self._warnings.append(f"{name} did nothing: {what} not available here")

    def _put(self, name: str, field: str, value: Any) -> None:
        """Set a field, under A1111's name if the record knows that one too, so that an error names what was sent."""
        outer, _, inner = field.partition(".")
        if name == "enable_hr" or inner:
            self._put_nested(name, outer, inner, value)
            return
        known = self._record.names.get(name)
        key = name if known is not None and known.name == field else field
        if key != name and key in self._body and not same(self._body[key], value):
            raise InvalidRequest(f"{name} and {key}: two names of one field with different values")
        self._job[key] = value

    def _put_nested(self, name: str, outer: str, inner: str, value: Any) -> None:
        """The same for a field of a nested record; with `inner` empty, ask for that record by its switch."""
        if not inner and not isinstance(value, bool):
            raise InvalidRequest(f"{name}: {shorten(value)} is not true or false")
        if not inner and self._body.get(outer) is not None:
            raise InvalidRequest(f"{outer} and {name}: two ways to ask for one thing; leave one out")
        nested = self._job.setdefault(outer, {})
        if inner:
            record = self._record[outer].record
            known = None if record is None else record.names.get(name)
            nested[name if known is not None and known.name == inner else inner] = value

    def _drop_unfit(self) -> None:
        """Drop options that the sampler does not have: A1111 ignores them."""
        sampler, schedule = self._job.get("sampler_name"), self._job.get("schedule")
        for name, reason in list(unfit_options(sampler, self._job)):
            del self._job[name]
            self._warnings.append(f"{name} did nothing: {reason}")
        if isinstance(schedule, str) and is_schedule(schedule) and isinstance(sampler, str):
            try:
                resolve(sampler, schedule)
            except InvalidRequest as error:
                self._job.pop("schedule")
                self._warnings.append(f"scheduler did nothing: {error}")
