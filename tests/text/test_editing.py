"""AUTOMATIC1111's prompt editing: its published examples, and what is not well-formed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_core.text.editing import Steps, versions

TEN = Steps(10)


def alternating(*texts: str) -> list[tuple[int, str]]:
    return [(step + 1, texts[step % len(texts)]) for step in range(10)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", alternating("a", "(b:1.1)")),
        ("[fe|]male", alternating("female", "male")),
        ("[fe|||]male", alternating("female", "male", "male", "male")),
    ],
    ids=str,
)
def test_the_published_examples(text: str, expected: list[tuple[int, str]]) -> None:
    assert versions(text, TEN) == expected


@pytest.mark.parametrize(
    ("text", "calls", "expected"),
    [
        (
            "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75]"
            "[ in foreground::0.6][ in background:0.25] [shoddy:masterful:0.5]",
            100,
            [
                (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
                (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
                (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
                (75, "fantasy landscape with a lake and an oak in background masterful"),
                (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
            ],
        ),
        ("[a:b:0.5]", 7, [(3, "a"), (7, "b")]),
        ("[a:b:5]", 4, [(4, "a")]),
        ("[a:b:1.0]", 4, [(4, "a")]),
        ("[a:b:1]", 4, [(1, "a"), (4, "b")]),
        ("[a:b:0]", 4, [(4, "b")]),
        ("[a:b:-1]", 4, [(4, "b")]),
        ("[a:b:+.25]", 4, [(1, "a"), (4, "b")]),
        ("[a:b:1e-1]", 4, [(4, "b")]),
        ("[a:b:2.5e-1]", 4, [(1, "a"), (4, "b")]),
        ("[a:b:9e999]", 4, [(4, "a")]),
        ("[a|[b:c:2]]", 4, [(1, "a"), (2, "b"), (3, "a"), (4, "c")]),
        ("[:a:1]", 2, [(1, ""), (2, "a")]),
        ("[a::1]", 2, [(1, "a"), (2, "")]),
        ("[a\n:1\t]", 2, [(1, ""), (2, "a\n")]),
        (r"[a\]\|:b\::1]", 2, [(1, r"a\]\|"), (2, r"b\:")]),
        ("(x [a:b:1]:1.2)", 2, [(1, "(x a:1.2)"), (2, "(x b:1.2)")]),
    ],
    ids=str,
)
def test_edits(text: str, calls: int, expected: list[tuple[int, str]]) -> None:
    assert versions(text, Steps(calls)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "[a:b]",
        "[a:b:x]",
        "[a:b:c:0.5]",
        "[a:b:nan]",
        "[a:b:0.5|c]",
        "[a:]",
        "[a|b",
        "(a|b) [c:3]",
        "a | b [c:3]",
        "[c:3] \\",
        "[(a:b:c):3]",
        "[x [a:b] y:3]",
        "[a)b:3]",
        "[3]",
    ],
)
def test_what_is_not_well_formed_is_text(text: str) -> None:
    assert versions(text, TEN) == [(10, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a [b:.5] c", [(10, "a b c")]),
        ("a [b:1.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b:20] c", [(10, "a b c")]),
        ("a [b:23] c", [(3, "a  c"), (10, "a b c")]),
        ("[a|b]", alternating("a", "b")),
    ],
)
def test_a_second_pass_counts_fractions_from_one_and_steps_from_the_first(
    text: str, expected: list[tuple[int, str]]
) -> None:
    assert versions(text, Steps(10, before=20)) == expected


@given(st.text(st.sampled_from(list("[]():|a 3.\\\n")), max_size=24))
def test_any_text_has_versions_that_end_in_order(text: str) -> None:
    found = versions(text, TEN)
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends)) and ends[-1] == 10
    assert all(len(version) <= len(text) for _, version in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "a" + "]" * 100_000,
        "(" * 100_000 + "[a:b:3]" + ")" * 100_000,
        "[a:" * 30_000 + "b" + ":3]" * 30_000,
        "[a:" * 50_000,
        "[a|" * 10_000 + "b" + "]" * 10_000,
        "[" + " " * 100_000,
        "[a:b:" + "1" * 100_000 + "]",
    ],
    ids=lambda text: text[:6],
)
def test_length_and_depth_are_no_obstacle(text: str) -> None:
    """Quadratic work on these would take hours, and recursion would end the process."""
    assert versions(text, TEN)[-1][0] == 10
