"""The table of a job's fields in docs/api.md, made from the record: `python -m worker.api.docs` rewrites it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sd_core.checks import plain
from sd_core.fields import Field, Record, Source
from worker.api.job import JOB, Recorded

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BEGIN, END = "<!-- fields: begin, made by python -m worker.api.docs -->", "<!-- fields: end -->"
TYPES: Mapping[Any, str] = {
    int: "int",
    float: "float",
    str: "string",
    bool: "bool",
    Source: "data URI, base64 or http(s) URL",
    Recorded: "text, object, or a picture: data URI, base64 or http(s) URL",
}


def table(record: Record) -> str:
    """The record as a Markdown table."""
    head = ["| field | also accepted | type | default | limits, meaning |", "|---|---|---|---|---|"]
    return "\n".join(head + list(_rows(record)))


def with_table(page: str, record: Record = JOB) -> str:
    """The page with this record's table between its two marks. Raises `ValueError` if a mark is missing."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(record)}\n{END}{after}"


def _rows(record: Record, prefix: str = "") -> Iterator[str]:
    for field in record:
        cells = [
            f"`{prefix}{field.name}`",
            ", ".join([*(f"`{alias}`" for alias in field.aliases), *_flat(field)]),
            _type(field),
            _default(field),
            "; ".join(part for part in (_limits(field), field.meaning) if part),
        ]
        yield "| " + " | ".join(cells).replace("|  |", "| |").replace("|  |", "| |") + " |"
        if field.record is not None:
            yield from _rows(field.record, f"{prefix}{field.name}[]." if field.is_list else f"{prefix}{field.name}.")


def _type(field: Field) -> str:
    if field.is_list:
        return "list of objects"
    return "object" if field.record is not None else TYPES[field.type]


def _flat(field: Field) -> list[str]:
    """One text for the names that may stand for a list of one item."""
    return [" with ".join(f"`{name}`" for name in field.flat)] if field.flat else []


def _default(field: Field) -> str:
    if field.required:
        return "required"
    if field.filled:
        return field.filled
    if field.default is None:
        return "none"
    return _code(field.default) if isinstance(field.default, str) else json.dumps(field.default)


def _limits(field: Field) -> str:
    if field.choices:
        return ", ".join(_code(choice) for choice in field.choices)
    if field.max_items is not None:
        return f"at most {field.max_items}"
    if field.max_length is not None:
        least = "up to " if not field.min_length else f"{field.min_length}.."
        return f"{least}{field.max_length:,} characters"
    high = "" if field.high is None else _number(field.high)
    if field.above is not None:
        bounds = f"over {_number(field.above)}" + (f", up to {high}" if high else "")
    else:
        bounds = f"{'' if field.low is None else _number(field.low)}..{high}" if field.low is not None or high else ""
    return f"multiples of {field.multiple_of}, {bounds}" if field.multiple_of else bounds


def _number(number: float) -> str:
    return "2^63-1" if number == 2**63 - 1 else plain(number)


def _code(value: Any) -> str:
    return f"`{value}`" if value else '`""`'


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
