from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_core.checks import check, require
from sd_core.errors import InvalidRequest
from sd_core.fields import Record, option


@dataclass(frozen=True, kw_only=True)
class Hires:
    scale: float = option(2.0, low=1, high=4, aliases=("hr_scale",))
    prompt: str = option("", private=True, max_length=5)


@dataclass(frozen=True, kw_only=True)
class Everything:
    count: int = option(1, low=0)
    most: int = option(1, high=9)
    any_int: int = option(1)
    any_float: float = option(1.0)
    over: float = option(1.0, above=0)
    code: str = option("abc", min_length=3)
    raw: str = option("", any_character=True)
    pair: int = option(2, multiple_of=2)
    picture: np.ndarray | None = option(None, aliases=("pictures[0]",), private=True)
    hires: Hires | None = option(None)


RECORD = Record.of(Everything)


def value_of(name: str, value: Any) -> Any:
    checked = check(RECORD, {name: value})
    assert checked.problems == []
    return checked.values[RECORD.names[name].name]


def problem(name: str, value: Any) -> str:
    checked = check(RECORD, {name: value})
    (text,) = checked.problems
    assert checked.values[RECORD.names[name].name] == RECORD.names[name].default  # the default stands in
    return text


def test_missing_values_have_their_defaults() -> None:
    checked = check(RECORD, {})
    assert (checked.problems, checked.written) == ([], {})
    assert Everything(**checked.values) == Everything()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 25.0, 25),
        ("count", 10**30, 10**30),
        ("any_int", -3.0, -3),
        ("any_float", 3, 3.0),
        ("raw", "a\0b", "a\0b"),
        ("hires", None, None),
        ("hires", {}, Hires()),
        ("hires", {"hr_scale": 3, "prompt": "x"}, Hires(scale=3.0, prompt="x")),
    ],
)
def test_good_values_are_taken(name: str, value: Any, expected: Any) -> None:
    taken = value_of(name, value)
    assert (taken, type(taken)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("count", -1, "count: -1 is not a whole number of at least 0"),
        ("most", 10, "most: 10 is not a whole number of at most 9"),
        ("any_int", "1", "any_int: '1' is not a whole number"),
        ("any_int", 1.5, "any_int: 1.5 is not a whole number"),
        ("any_float", float("nan"), "any_float: nan is not a number"),
        ("any_float", float("-inf"), "any_float: -inf is not a number"),
        ("any_float", 10**400, "any_float: a number of more than 40 digits is not a number"),
        ("over", 0, "over: 0 is not a number over 0"),
        ("code", "ab", "code: has 2 characters, at least 3 are needed"),
        ("code", "ab\0", "code: holds a NUL character at position 2"),
        ("pair", 3.0, "pair: 3 is not a multiple of 2; the nearest are 2 and 4"),
        ("picture", 5, "picture: 5 is not an image: a PIL image or an array uint8 (height, width, 3)"),
        ("pictures", 5, "pictures: 5 is not a list of one"),
        ("pictures", [1, 2], "pictures: a list of 2 is not a list of one"),
        ("hires", 5, "hires: 5 is not an object of fields"),
        ("hires", {"scale": 9}, "hires.scale: 9 is not a number from 1 to 4"),
        ("hires", {"hr_scale": "x"}, "hires.hr_scale: 'x' is not a number from 1 to 4"),
        ("hires", {"scal": 2}, "hires.scal: unknown field, did you mean hires.scale?"),
        ("hires", {"prompt": 3}, "hires.prompt: 3 is not a string"),
        ("hires", {"scale": 1, "hr_scale": 2},
         "hires.scale and hires.hr_scale: two names of one field with different values"),
        ("hires", {5: 2}, "hires.5: field names are strings"),
    ],
)  # fmt: skip
def test_bad_values_are_reported(name: str, value: Any, text: str) -> None:
    if name != "pictures":
        assert problem(name, value) == text
    else:
        assert check(RECORD, {name: value}).problems == [text]


def test_a_nested_record_reports_each_problem_without_private_values() -> None:
    checked = check(RECORD, {"hires": {"scale": 0, "prompt": "s3cret"}})
    assert checked.problems == [
        "hires.scale: 0 is not a number from 1 to 4", "hires.prompt: has 6 characters, at most 5 are allowed",
    ]  # fmt: skip


def test_an_image_is_an_array_or_a_pil_image() -> None:
    array = np.zeros((4, 6, 3), np.uint8)
    assert value_of("picture", array) is array
    assert value_of("pictures", [array]) is array
    for mode in ("RGB", "L"):
        image = Image.new(mode, (6, 4))
        assert value_of("picture", image) is image
    assert problem("picture", Image.new("RGBA", (6, 4))) == "picture: a PIL image of mode RGBA is not one of RGB or L"
    for bad in (array.astype(np.float32), array[..., 0], np.zeros((0, 6, 3), np.uint8), np.zeros((4, 6, 4), np.uint8)):
        assert "is not an image" in problem("picture", bad)


def test_the_value_of_a_private_field_is_never_quoted() -> None:
    assert problem("picture", "s3cret").startswith("picture: a string of 6 characters is not an image")


def test_the_same_array_by_two_names_is_one_value() -> None:
    array = np.zeros((4, 6, 3), np.uint8)
    assert check(RECORD, {"picture": array, "pictures": [array]}).problems == []
    assert "two names" in check(RECORD, {"picture": array, "pictures": [array.copy()]}).problems[0]


def test_a_name_that_could_be_two_fields_means_what_the_caller_says() -> None:
    assert check(RECORD, {"n": 5}, meant={"n": "count"}).values["count"] == 5
    assert check(RECORD, {"count": 5}, meant={"count": "most"}).values["count"] == 1


def test_only_problems_are_an_error() -> None:
    require([])
    with pytest.raises(InvalidRequest, match=r"^a; b$"):
        require(["a", "b"])
