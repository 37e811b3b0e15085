"""Check values against a record's fields, without converting JSON's types, and word what is wrong."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sd_core.errors import InvalidRequest
from sd_core.fields import Field, Record, Source, make

MAX_PROBLEMS = 30

# Modes of a PIL image. Others have transparency or deeper levels, and only the caller knows how to convert them.
IMAGE_MODES = ("RGB", "L")

NO_NAMES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Checked:
    """The good values by field name, with defaults for all others, and one text for each thing that is wrong.

    `written` holds, for each field that was given, the name that it was given by. A required field that is missing has
    no value.
    """

    values: dict[str, Any]
    written: dict[str, str]
    problems: list[str]


class Unfit(ValueError):
    """A value is not what its field takes; the text says why without the field's name."""


def check(record: Record, given: Mapping[Any, Any], meant: Mapping[str, str] = NO_NAMES, prefix: str = "") -> Checked:
    """Check `given`, values by a field's name or alias, and fill in the defaults.

    `meant` maps a name that could mean two fields to the one that it means here. Names in the texts of problems have
    `prefix` before them. Two names of one field are allowed if their values are equal. Every problem is reported.
    """
    values, written, problems = _by_field(record, given, meant, prefix)
    checked: dict[str, Any] = {}
    for field in record:
        if field.name not in values:
            if field.required:
                problems.append(f"{prefix}{field.name}: is required")
            else:
                checked[field.name] = field.left_out
            continue
        bad, value = check_field(field, values[field.name], prefix + written[field.name])
        problems += bad
        if not bad:
            checked[field.name] = value
        elif not field.required:
            checked[field.name] = field.left_out
    return Checked(checked, written, problems)


def require(problems: list[str]) -> None:
    """Raise `InvalidRequest` if there are problems: it names the first MAX_PROBLEMS and counts the others."""
    if problems:
        more = len(problems) - MAX_PROBLEMS
        shown = "; ".join(problems[:MAX_PROBLEMS])
        raise InvalidRequest(shown + (f"; and {more:,} more" if more > 0 else ""))


def check_field(field: Field, value: Any, name: str) -> tuple[list[str], Any]:
    """What is wrong with a value that was given by this name, and the value in its field's type."""
    if field.is_list:
        return _items(field, value, name)
    if field.record is not None and isinstance(value, Mapping):
        return _item(field, field.record, value, f"{name}.")
    try:
        return [], check_value(field, value)
    except Unfit as reason:
        return [f"{name}: {reason}"], None


def _items(field: Field, value: Any, name: str) -> tuple[list[str], tuple[Any, ...]]:
    """The same for the items of a list."""
    assert field.record is not None  # a list is one of records
    if isinstance(value, _Flat):
        if field.flat[0] not in value.item:
            return [f"{name}: needs {field.flat[0]}"], ()
        problems, item = _item(field, field.record, value.item, value.prefix)
        return problems, (item,)
    if not isinstance(value, list | tuple):
        return [f"{name}: {shorten(value)} is not a list of objects"], ()
    if field.max_items is not None and len(value) > field.max_items:
        return [f"{name}: has {len(value):,} entries, at most {field.max_items} are allowed"], ()
    problems, items = [], []
    for index, each in enumerate(value):
        given = vars(each) if isinstance(each, field.type) else each
        if isinstance(given, Mapping):
            wrong, item = _item(field, field.record, given, f"{name}[{index}].")
            problems += wrong
            items.append(item)
        else:
            problems.append(f"{name}[{index}]: {shorten(each)} is not an object of fields")
    return problems, tuple(items)


def _item(field: Field, record: Record, given: Mapping[Any, Any], prefix: str) -> tuple[list[str], Any]:
    inner = check(record, given, prefix=prefix)
    return inner.problems, None if inner.problems else make(field.type, inner.values)


@dataclass(frozen=True)
class _Flat:
    """The one item of a list, given by names in the list's place; `prefix` stands before them in problems."""

    item: Mapping[str, Any]
    prefix: str


def _gathered(record: Record, given: Mapping[Any, Any], prefix: str) -> Mapping[Any, Any]:
    """The values with one for each list that was given by the names of its item's fields."""
    for field in record:
        item = {name: given[name] for name in field.flat if given.get(name) is not None}
        if field.flat:
            given = {name: value for name, value in given.items() if name not in field.flat}
        if item:
            given = {**given, next(iter(item)): _Flat(item, prefix)}
    return given


def _by_field(
    record: Record, given: Mapping[Any, Any], meant: Mapping[str, str], prefix: str
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The values by field name, the name that was used for each, and the problems with names."""
    names = record.names
    lists = {alias.removesuffix("[0]") for field in record for alias in field.aliases if alias.endswith("[0]")}
    values: dict[str, Any] = {}
    written: dict[str, str] = {}
    problems: list[str] = []
    for name, value in _gathered(record, given, prefix).items():
        field = names.get(meant.get(name, name)) if isinstance(name, str) else None
        if field is None:
            # Past MAX_PROBLEMS only count: there may be a million, and finding near names takes time.
            problems.append(unknown_field(name, names, prefix) if len(problems) < MAX_PROBLEMS else "")
            continue
        if name in lists and value is not None:
            if not isinstance(value, list) or len(value) != 1:
                count = f"a list of {len(value)}" if isinstance(value, list) else shorten(value)
                problems.append(f"{prefix}{name}: {count} is not a list of one")
                continue
            value = value[0]
        if value is None and field.nullable:
            continue
        if field.name not in values:
            values[field.name], written[field.name] = value, name
        elif not same(values[field.name], value):
            both = f"{prefix}{written[field.name]} and {prefix}{name}"
            problems.append(f"{both}: two names of one field with different values")
    return values, written, problems


def check_value(field: Field, value: Any) -> Any:
    """The value in its field's type: 25.0 is the int 25, an int is a float. Raises `Unfit`."""
    value = next((meant for spelled, meant in field.spellings if same(spelled, value)), value)
    if field.type is int:
        return _integer(field, value)
    if field.type is float:
        return _number(field, value)
    if field.type in (str, Source):
        return _text(field, value)
    if field.type is bool:
        if not isinstance(value, bool):
            raise Unfit(f"{described(field, value)} is not true or false")
        return value
    if field.type is np.ndarray:
        return _image(field, value)
    raise Unfit(f"{described(field, value)} is not an object of fields")


def _integer(field: Field, value: Any) -> int:
    wanted = f"a whole number{limits_of(field)}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not _within(field, value):
        raise Unfit(f"{described(field, value)} is not {wanted}")
    if field.multiple_of is not None and value % field.multiple_of:
        below = value - value % field.multiple_of
        nearest = f"the nearest are {below} and {below + field.multiple_of}"
        raise Unfit(f"{described(field, value)} is not a multiple of {field.multiple_of}; {nearest}")
    return value


def _number(field: Field, value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if good and _within(field, value):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise Unfit(f"{described(field, value)} is not a number{limits_of(field)}")


def _within(field: Field, value: float) -> bool:
    return (
        (field.low is None or value >= field.low)
        and (field.above is None or value > field.above)
        and (field.high is None or value <= field.high)
    )


def _text(field: Field, value: Any) -> str:
    if field.choices and (not isinstance(value, str) or value not in field.choices):
        raise Unfit(f"{described(field, value)} is not one of {', '.join(field.choices)}")
    if not isinstance(value, str):
        raise Unfit(f"{described(field, value)} is not a string")
    if field.max_length is not None and len(value) > field.max_length:
        raise Unfit(f"has {len(value):,} characters, at most {field.max_length:,} are allowed")
    if field.min_length is not None and len(value) < field.min_length:
        raise Unfit(f"has {len(value):,} characters, at least {field.min_length:,} are needed" if value else "is empty")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value):
        raise Unfit("holds characters that are not valid Unicode (lone surrogates)")
    if "\0" in value and not field.any_character:
        raise Unfit(f"holds a NUL character at position {value.index(chr(0))}")
    return value


def _image(field: Field, value: Any) -> Any:
    if isinstance(value, Image.Image):
        if value.mode in IMAGE_MODES:
            return value
        raise Unfit(f"a PIL image of mode {value.mode} is not one of {' or '.join(IMAGE_MODES)}")
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3 and value.size:
            return value
        raise Unfit(f"an array of {value.dtype} {value.shape} is not an image: uint8 (height, width, 3)")
    raise Unfit(f"{described(field, value)} is not an image: a PIL image or an array uint8 (height, width, 3)")


def limits_of(field: Field) -> str:
    """The words for a number's limits, with a space before them: " from 1 to 150"; empty without any."""
    low, above, high = (None if n is None else plain(n) for n in (field.low, field.above, field.high))
    if above is not None:
        return f" over {above}" + (f" and up to {high}" if high is not None else "")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""


def plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def unknown_field(name: object, known: Mapping[str, Field], prefix: str = "") -> str:
    """The words for a field that does not exist, with the nearest that does."""
    if not isinstance(name, str):
        return f"{prefix}{shorten(name)}: field names are strings"
    near = difflib.get_close_matches(name[:64].lower(), known, n=1)
    label = name if name.isidentifier() and name.isascii() and len(name) <= 40 else shorten(name)
    return f"{prefix}{label}: unknown field" + (f", did you mean {prefix}{near[0]}?" if near else "")


def described(field: Field, value: object) -> str:
    """`shorten`, but only the kind of value if the field is private."""
    if field.private and isinstance(value, str):
        return f"a string of {len(value):,} characters"
    return shorten(value)


def shorten(value: object) -> str:
    """A value as an error shows it: at most about 60 characters of plain ASCII, whatever was sent."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**40 else "a number of more than 40 digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, dict) else f"a value of type {type(value).__name__}"


def same(one: object, other: object) -> bool:
    """Equal as JSON values: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return one is other
    return isinstance(one, bool) == isinstance(other, bool) and one == other
