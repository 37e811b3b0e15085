"""A record as JSON schema, for descriptions of the API that programs read."""

from collections.abc import Mapping
from typing import Any

from sd_core.fields import Field, Record, Source
from worker.api.job import Recorded

TYPES: Mapping[Any, str | list[str]] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    Source: "string",
    Recorded: ["string", "object"],
}


def schema(record: Record) -> dict[str, Any]:
    """The JSON schema of an object of these fields; aliases are named in the descriptions."""
    return {
        "type": "object",
        "properties": {field.name: _property(field) for field in record},
        "required": [field.name for field in record if field.required],
    }


def _property(field: Field) -> dict[str, Any]:
    kind: dict[str, Any] = schema(field.record) if field.record is not None else {"type": TYPES[field.type]}
    if field.is_list:
        kind = {"type": "array", "items": kind}
    if field.nullable:
        types = kind["type"]
        kind["type"] = [*(types if isinstance(types, list) else [types]), "null"]
    limits = {
        "minimum": field.low,
        "exclusiveMinimum": field.above,
        "maximum": field.high,
        "multipleOf": field.multiple_of,
        "minLength": field.min_length,
        "maxLength": field.max_length,
        "maxItems": field.max_items,
        "enum": list(field.choices) or None,
        "description": _description(field) or None,
    }
    default: Any = list(field.default) if field.is_list else field.default
    known = {} if field.required or field.filled or default is None else {"default": default}
    return {**kind, **{name: limit for name, limit in limits.items() if limit is not None}, **known}


def _description(field: Field) -> str:
    others = [*field.aliases, *field.flat]
    also = f"also accepted: {', '.join(others)}" if others else ""
    filled = f"default: {field.filled}" if field.filled else ""
    return "; ".join(part for part in (field.meaning, filled, also) if part)
