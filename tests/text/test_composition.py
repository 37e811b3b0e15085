import pytest

from sd_core.text.composition import split_prompt
from sd_core.text.weights import Piece


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("", [("", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        ("a cat :1.2 AND a dog: -0.8 \n", [("a cat", 1.2), (" a dog", -0.8)]),
        ("a :1:2", [("a :1", 2.0)]),
        ("a:.5", [("a", 0.5)]),
        ("a:5.", [("a", 5.0)]),
        ("a:1e5", [("a:1e5", 1.0)]),
        ("a:nan", [("a:nan", 1.0)]),
        ("(a:1.2)", [("(a:1.2)", 1.0)]),
        ("and BRAND AND_ANDY", [("and BRAND AND_ANDY", 1.0)]),
        ("a,AND,b", [("a,", 1.0), (",b", 1.0)]),
        ("(a AND b:2)", [("(a", 1.0), (" b:2)", 1.0)]),
        ("AND", [("", 1.0), ("", 1.0)]),
        ("a\nAND\nb : 2", [("a", 1.0), ("\nb", 2.0)]),
    ],
    ids=str,
)
def test_and_joins_prompts_with_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert split_prompt(text) == [Piece(*each) for each in expected]


@pytest.mark.parametrize("text", ["AND " * 50_000, ":1" * 50_000, ":" + " " * 100_000 + "x", ": " * 50_000])
def test_length_is_no_obstacle(text: str) -> None:
    """Quadratic work on these would take hours."""
    assert split_prompt(text)
