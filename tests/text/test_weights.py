"""AUTOMATIC1111's emphasis: its published examples, its quirks, and what nobody should send."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_core.text.weights import BREAK, Piece, parse_weights

SQUARE = 1 / 1.1


def pieces(text: str) -> list[tuple[str, Any]]:
    return [(piece.text, pytest.approx(piece.weight, rel=1e-12)) for piece in parse_weights(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
    ],
    ids=str,
)
def test_the_published_examples(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", 1.0)]),
        ("((", [("", 1.0)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:-0.5)b", [("a", -0.5), ("b", 1.0)]),
        ("(a:+2)", [("a", 2.0)]),
        ("(a b:.5)", [("a b", 0.5)]),
        ("a:1.3)", [("a:1.3)", 1.0)]),
        ("[a:1.3)", [("a:1.3)", SQUARE)]),
        ("a) b]", [("a) b]", 1.0)]),
        ("[[a]] b", [("a", SQUARE**2), (" b", 1.0)]),
        ("(a [b) c] d", [("a ", 1.1), ("b", 1.0), (" c", SQUARE), (" d", 1.0)]),
        ("(a:1e9)", [("a:1e9", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:inf)", [("a:inf", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:.)", [("a:.", 1.1)]),
        (r"\\(a\\) \a", [("\\", 1.0), ("a\\", 1.1), (" a", 1.0)]),
        ("a\n(b)\n", [("a\n", 1.0), ("b", 1.1), ("\n", 1.0)]),
    ],
    ids=str,
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [Piece("a", 1.0), BREAK, Piece("b", 1.0)]),
        ("a,\nBREAK,b", [Piece("a,", 1.0), BREAK, Piece(",b", 1.0)]),
        ("BREAK BREAK", [Piece("", 1.0), BREAK, Piece("", 1.0), BREAK, Piece("", 1.0)]),
        ("break BREAKS", [Piece("break BREAKS", 1.0)]),
        ("(a BREAK b:2)", [Piece("a", 2.0), Piece("BREAK", -2.0), Piece("b", 2.0)]),
    ],
    ids=str,
)
def test_break_ends_a_chunk_outside_of_groups(text: str, expected: list[Piece]) -> None:
    assert parse_weights(text) == expected


@given(st.text(st.sampled_from(list("ab ()[]:1.\\")), max_size=30))
def test_no_character_is_lost_but_brackets_weights_and_escapes(text: str) -> None:
    kept = "".join(piece.text for piece in parse_weights(text))
    letters = [character for character in text if character in "ab"]
    assert [character for character in kept if character in "ab"] == letters
    assert len(kept) <= len(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000 + "a",
        "(" * 100_000 + "a" + ")" * 100_000,
        "([" * 50_000 + "a" + ")]" * 50_000,
        "(a:2" * 30_000,
        " " * 100_000 + "(",
        ":" + " " * 100_000,
        "BREAK " * 20_000,
        ": 1" * 30_000,
    ],
    ids=lambda text: text[:6],
)
def test_length_and_depth_are_no_obstacle(text: str) -> None:
    """Quadratic work on these would take hours, and recursion would end the process."""
    assert parse_weights(text)
