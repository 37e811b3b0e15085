"""A record's fields. Each is one line of a frozen dataclass, from which all descriptions of the field are derived.

```python
@dataclass(frozen=True, kw_only=True)
class Request:
    steps: int = option(25, low=1, high=150, aliases=("num_inference_steps",), label="Steps", meaning="UNet steps")
```

`Record.of(Request)` reads those lines. `sd_core.checks` validates values against them; the documentation, schemas,
signatures and infotexts are derived from them elsewhere.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, replace
from typing import Any, TypeVar

import numpy as np

# An instance of the dataclass -> the text after a field's label, or None to leave the field out.
ToText = Callable[[Any], str | None]

# The text after a label -> values by field name. Raises `ValueError` if the text is malformed.
FromText = Callable[[str], Mapping[str, Any]]

# Where an image comes from: base64, a data URI or a URL.
Source = typing.NewType("Source", str)

KEY = "field"
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a record.

    A field without a `default` is required, unless `filled` describes, for the docs, what the program fills in if the
    field is left out; its checked value is then None.

    - `type` is str, int, float, bool, `np.ndarray` (an image), `Source`, or a dataclass, whose fields are in `record`.
    - A field that `is_list` is a tuple of at most `max_items` such dataclasses. The names in `flat` are names of an
      item's fields, which may stand in the field's place if it has one item; the others need the first of them.
    - `low`, `high` and `above` (exclusive) bound a number, `min_length` and `max_length` a text.
    - `spellings` are pairs: a value that other tools use, and the value that it means here.
    - Null in a `nullable` field means left out.
    - `aliases` are other names of the field; `name[0]` is a list of exactly one value.
    - `label` is the field's name in an infotext; `to_text` and `from_text` are for a text that is not just the value.
    - The value of a `private` field never appears in an error.
    - `acts_with` names fields; without a value in any of them, this one has no effect.
    - `any_character` allows NUL in a text.
    - A field that is not `shown` is left out of a response's parameters.
    """

    name: str = ""
    type: Any = None
    default: Any  # MISSING: none
    filled: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None
    multiple_of: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    choices: tuple[str, ...] = ()
    spellings: tuple[tuple[Any, Any], ...] = ()
    nullable: bool = False
    meaning: str = ""
    aliases: tuple[str, ...] = ()
    label: str = ""
    to_text: ToText | None = None
    from_text: FromText | None = None
    private: bool = False
    acts_with: tuple[str, ...] = ()
    any_character: bool = False
    shown: bool = True
    record: "Record | None" = None
    is_list: bool = False
    max_items: int | None = None
    flat: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is MISSING and not self.filled

    @property
    def left_out(self) -> Any:
        """The checked value of the field if it is left out."""
        return None if self.filled else self.default


def option(default: Any = MISSING, *, filled: str = "", **described: Any) -> Any:
    """A dataclass field that is described by `Field`'s attributes: `steps: int = option(25, low=1, high=150)`.

    With `filled`, `default` is only the constructor's: a checked value is None until it is filled in. Raises
    `TypeError` for an attribute that `Field` does not have.
    """
    field = Field(default=default, filled=filled, **described)
    return dataclasses.field(default=default, metadata={KEY: field})


@dataclass(frozen=True)
class Record:
    """The fields of one or several dataclasses, in order."""

    fields: tuple[Field, ...]
    owners: tuple[type, ...] = ()

    @classmethod
    def of(cls, *owners: type) -> "Record":
        """The record of all lines of these dataclasses that are made by `option`.

        Raises `ValueError` if two fields share a name or an alias.
        """
        return cls(tuple(field for owner in owners for field in _fields_of(owner)), owners)

    def __post_init__(self) -> None:
        names = [name for field in self.fields for name in (field.name, *field.aliases, *field.flat)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two fields of one record are named {', '.join(twice)}")

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def __getitem__(self, name: str) -> Field:
        return {field.name: field for field in self.fields}[name]

    @property
    def names(self) -> dict[str, Field]:
        """Every name that a job may use -> the field that it means; `name[0]` stands under `name`."""
        own = {field.name: field for field in self.fields}
        others = ((name, field) for field in self.fields for name in (*field.aliases, *field.flat))
        return own | {name.removesuffix("[0]"): field for name, field in others}

    def with_field(self, field: Field) -> "Record":
        """A copy with this field: in the place of the one of the same name, else at the end."""
        if all(known.name != field.name for known in self.fields):
            return replace(self, fields=(*self.fields, field))
        return replace(self, fields=tuple(field if known.name == field.name else known for known in self.fields))

    def with_sources(self) -> "Record":
        """A copy in which each image is the string that it comes from."""
        return replace(self, fields=tuple(_with_source(field) for field in self.fields))


def make(owner: type[R], values: Mapping[str, Any]) -> R:
    """An instance of a record's dataclass from the values that are its fields'; the others are ignored."""
    names = {field.name for field in dataclasses.fields(owner)}  # type: ignore[arg-type] # every owner is a dataclass
    return owner(**{name: value for name, value in values.items() if name in names})


def _fields_of(owner: type) -> Iterator[Field]:
    annotations = typing.get_type_hints(owner)
    for line in dataclasses.fields(owner):
        if KEY in line.metadata:
            described: Field = line.metadata[KEY]
            kind, optional = _without_none(annotations[line.name])
            is_list = typing.get_origin(kind) is tuple
            kind = typing.get_args(kind)[0] if is_list else kind
            yield replace(
                described,
                name=line.name,
                type=kind,
                is_list=is_list,
                nullable=optional or is_list or described.nullable or bool(described.filled),
                record=Record.of(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None,
            )


def _without_none(annotation: Any) -> tuple[Any, bool]:
    """`int | None` -> int, True."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
        if len(kinds) == 1:
            return kinds[0], True
    return annotation, False


def _with_source(field: Field) -> Field:
    if field.record is not None:
        return replace(field, record=field.record.with_sources())
    if field.type is np.ndarray:
        return replace(field, type=Source, min_length=1)
    return field
