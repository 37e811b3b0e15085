"""ComfyUI's emphasis, beside a plain description of it."""

from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sd_core.text.comfy import parse_comfy
from sd_core.text.weights import Piece


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("a ((b))", [("a ", 1.0), ("b", 1.1 * 1.1)]),
        ("(a:1.3)", [("a", 1.3)]),
        ("((a:1.3) b:0.5)", [("a", 1.3), (" b", 0.5)]),
        ("((a) b:2)", [("a", 2 * 1.1), (" b", 2.0)]),
        ("(:1.5)", [(":1.5", 1.1)]),
        ("(a:x)", [("a:x", 1.1)]),
        ("[a] BREAK [b:c:3] AND d", [("[a] BREAK [b:c:3] AND d", 1.0)]),
        (r"\(a\) (b \(c\):2)", [("(a) ", 1.0), ("b (c)", 2.0)]),
        ("(a", [("(a", 1.0)]),
        ("((a)", [("(a", 1.1)]),
        ("a) (b)", [("a) (b)", 1.0)]),
        ("a) ((b))", [("a) (", 1.0), ("b", 1.1), (")", 1.0)]),
    ],
    ids=str,
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_comfy(text) == [Piece(*each) for each in expected]


def described(text: str, weight: float) -> list[Piece]:
    """The same by its description: split at the outermost brackets, and again within them."""
    pieces: list[Piece] = []
    for item in outermost(text):
        if item[0] != "(" or item[-1] != ")" or len(item) == 1:
            pieces.append(Piece(item, weight))
            continue
        inside, inner_weight = item[1:-1], weight * 1.1
        before, _, after = inside.rpartition(":")
        if before:
            with suppress(ValueError):
                inner_weight, inside = float(after), before
        pieces += described(inside, inner_weight)
    return pieces


def outermost(text: str) -> list[str]:
    items, begin, level = [], 0, 0
    for index, character in enumerate(text):
        if character == "(":
            if level == 0:
                items.append(text[begin:index])
                begin = index
            level += 1
        elif character == ")":
            level -= 1
            if level == 0:
                items.append(text[begin : index + 1])
                begin = index + 1
    return [item for item in [*items, text[begin:]] if item]


@settings(max_examples=2_000, deadline=None)
@given(st.text(st.sampled_from(list("(()))ab:2")), max_size=14))
@example("(a (b) (c:2)")
def test_any_brackets_mean_what_the_description_says(text: str) -> None:
    assert parse_comfy(text) == (described(text, 1.0) or [Piece("", 1.0)])


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "(" * 20_000 + "a" + ")" * 20_000,
        "(" * 20_000 + "a" + ")" * 19_999,
        "a)(" * 30_000,
        ":(" * 50_000,
        "(a:1" * 20_000,
    ],
    ids=lambda text: text[:6],
)
def test_length_and_depth_are_no_obstacle(text: str) -> None:
    """Recursion would end the process, and a pass over the text for each bracket take minutes."""
    assert parse_comfy(text)
