"""Values from another record of a job, such as an infotext: those that this worker's fields accept, and warnings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sd_core.checks import Unfit, check_field, check_value, shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Field, Record
from sd_core.sampling.registry import SOLVERS, resolve

PREFIX = "parameters"  # of every warning and error: the field that brought the values
PROMPTS = ("prompt", "negative_prompt")


@dataclass(frozen=True)
class Found:
    """Values by field name, those of a nested record as an object, and warnings about what cannot be used."""

    values: dict[str, Any]
    warnings: tuple[str, ...] = ()


def usable(record: Record, values: Mapping[str, Any], written: Mapping[str, str], prefix: str = "") -> Found:
    """The values that their fields take, with a warning for each other one.

    `written` holds the name by which a field was given, where that is not its own. Sampler and schedule are resolved.
    Raises `InvalidRequest` for a prompt that its field does not take: nothing can stand in for it.
    """
    fields = {field.name: field for field in record}
    good: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in values.items():
        known = written.get(prefix + name, prefix + name)
        if name not in fields:
            warnings.append(f"{PREFIX}: {known} did nothing: it is not available here")
            continue
        if value is None and fields[name].nullable:
            continue
        try:
            good[name], inner = _taken(fields[name], value, written, f"{prefix}{name}.")
            warnings += inner
        except Unfit as reason:
            if name in PROMPTS and not prefix:
                raise InvalidRequest(f"{PREFIX}: {known} {reason}") from reason
            warnings.append(f"{PREFIX}: {known} was ignored: {reason}")
    if "sampler" in fields:
        resolved = resolved_sampler(good)
        return Found(resolved.values, (*warnings, *resolved.warnings))
    return Found(good, tuple(warnings))


def _taken(field: Field, value: Any, written: Mapping[str, str], prefix: str) -> tuple[Any, tuple[str, ...]]:
    if field.is_list:
        return _items(field, value, prefix.removesuffix("."))
    if field.record is not None and isinstance(value, Mapping):
        inner = usable(field.record, value, written, prefix)
        return inner.values, inner.warnings
    return check_value(field, value), ()


def _items(field: Field, value: Any, name: str) -> tuple[Any, tuple[str, ...]]:
    """The items that are as a job could have them, as they are, and a warning for each other one."""
    if not isinstance(value, list) or (field.max_items is not None and len(value) > field.max_items):
        raise Unfit(f"it is not a list of at most {field.max_items} objects")
    good, warnings = [], []
    for index, item in enumerate(value):
        problems, _ = check_field(field, [item], name)
        if problems:
            own = problems[0].replace(f"{name}[0]", f"{name}[{index}]", 1)
            warnings.append(f"{PREFIX}: an entry was ignored: {own}")
        else:
            good.append(item)
    return good, tuple(warnings)


def resolved_sampler(values: Mapping[str, Any]) -> Found:
    """The values with sampler and schedule as canonical names; one that is unknown is left out with a warning."""
    sampler, schedule = values.get("sampler"), values.get("schedule")
    others = {name: value for name, value in values.items() if name not in ("sampler", "schedule")}
    try:
        if sampler is not None:
            solver, resolved = resolve(sampler, schedule)
            return Found({**others, "sampler": solver, "schedule": resolved})
        return Found(others if schedule is None else {**others, "schedule": resolve(None, schedule)[1]})
    except InvalidRequest as error:
        problem = str(error)
    if sampler is not None and schedule is not None:
        try:
            solver, resolved = resolve(sampler, None)
        except InvalidRequest as error:
            problem = str(error)
        else:
            warning = f"{PREFIX}: the schedule {shorten(schedule)} was ignored: {problem}"
            return Found({**others, "sampler": solver, "schedule": resolved}, (warning,))
    what = "sampler and its schedule were" if sampler is not None else "schedule was"
    return Found(others, (f"{PREFIX}: the {what} ignored: {problem}",))


def unfit_options(sampler: Any, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each sampler option among the values that this sampler does not have, with the reason; none if it is unknown."""
    try:
        solver, _ = resolve(sampler if isinstance(sampler, str) else None, None)
    except InvalidRequest:
        return
    options = {name for entry in SOLVERS.values() for name in entry.options}
    for name in values:
        if name in options and name not in SOLVERS[solver].options:
            yield name, f"sampler {solver} has no such option"
