from dataclasses import dataclass, fields, replace

import numpy as np
import pytest

from sd_core.fields import Record, Source, make, option


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = option(1, low=0)
    picture: np.ndarray | None = option(None)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = option(max_length=9)
    ratio: float | None = option(None, aliases=("share",))
    side: int = option(filled="the model's", low=8)
    inner: Inner | None = option(None)
    unlisted: int = 0


RECORD = Record.of(Outer)


def test_a_record_has_the_lines_of_its_dataclass_in_order_with_their_types() -> None:
    assert [(field.name, field.type, field.nullable) for field in RECORD] == [
        ("name", str, False), ("ratio", float, True), ("side", int, True), ("inner", Inner, True),
    ]  # fmt: skip


def test_a_field_is_required_unless_it_has_a_default_or_is_filled_in_later() -> None:
    assert {field.name: field.required for field in RECORD} == {
        "name": True, "ratio": False, "side": False, "inner": False,
    }  # fmt: skip
    assert RECORD["side"].left_out is None


def test_a_filled_field_without_a_default_is_required_by_the_constructor() -> None:
    with pytest.raises(TypeError, match="side"):
        Outer(name="x")


def test_an_unknown_attribute_of_a_field_is_an_error() -> None:
    with pytest.raises(TypeError, match="hihg"):
        option(1, hihg=3)


def test_every_name_leads_to_its_field() -> None:
    assert {name: field.name for name, field in RECORD.names.items()} == {
        "name": "name", "ratio": "ratio", "side": "side", "inner": "inner", "share": "ratio",
    }  # fmt: skip


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="share"):
        RECORD["share"]


def test_two_fields_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="share"):
        RECORD.with_field(replace(RECORD["side"], aliases=("share",)))
    with pytest.raises(ValueError, match="depth"):
        Record.of(Inner, Inner)


def test_a_field_is_added_to_or_replaced_in_a_copy() -> None:
    changed = RECORD.with_field(replace(RECORD["name"], max_length=5))
    grown = RECORD.with_field(replace(RECORD["name"], name="other"))
    assert ([field.name for field in changed], changed["name"].max_length) == (
        ["name", "ratio", "side", "inner"], 5,
    )  # fmt: skip
    assert [field.name for field in grown] == ["name", "ratio", "side", "inner", "other"]
    assert RECORD["name"].max_length == 9


def test_images_become_sources_in_nested_records_too() -> None:
    inner = RECORD.with_sources()["inner"].record
    assert inner is not None
    assert inner["picture"].type is Source
    assert inner["depth"].type is int


def test_an_instance_takes_only_its_own_values() -> None:
    values = {"name": "x", "side": 8, "other": 5}
    assert make(Outer, values) == Outer(name="x", side=8)
    assert {field.name for field in fields(Outer)} == {"name", "ratio", "side", "inner", "unlisted"}
