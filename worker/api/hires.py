"""A1111's flat fields of a hires pass (`enable_hr`, `hr_scale` ...) -> the nested field `hires`."""

from collections.abc import Mapping
from typing import Any

from sd_core.checks import shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Record

SWITCH = "enable_hr"
SAME = ("use same sampler", "use same scheduler")
"""What A1111 calls the job's own in these fields."""


def nested_hires(payload: Mapping[Any, Any], record: Record) -> tuple[dict[Any, Any], list[str]]:
    """The payload with `hires` in place of the flat fields, and the names of those that do nothing.

    They act only with `enable_hr` true; 0, null and "" mean the same as left out. Raises `InvalidRequest` if
    `enable_hr` is not a truth value, or stands beside `hires`.
    """
    hires = record["hires"].record
    assert hires is not None
    flat = {alias for field in hires for alias in field.aliases}
    asked = {name: value for name, value in payload.items() if name in flat and not _is_empty(value)}
    rest = {name: value for name, value in payload.items() if name not in flat and name != SWITCH}
    switch = payload.get(SWITCH)
    if switch is not None and not isinstance(switch, bool):
        raise InvalidRequest(f"{SWITCH}: {shorten(switch)} is not true or false")
    if not switch:
        return rest, [] if SWITCH in payload else list(asked)
    if rest.get("hires") is not None:
        raise InvalidRequest(f"hires and {SWITCH}: two ways to ask for one thing; leave one out")
    return {**rest, "hires": asked}, []


def _is_empty(value: object) -> bool:
    if isinstance(value, str):
        return not value or value.casefold() in SAME
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value == 0)
