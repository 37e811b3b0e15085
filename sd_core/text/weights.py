"""AUTOMATIC1111's emphasis: `(text)`, `(text:1.3)`, `[text]`, escapes, and the word BREAK.

Source: the behaviour of AUTOMATIC1111's web UI 1.10, whose published examples the tests hold.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

ROUND, SQUARE = 1.1, 1 / 1.1

# A backslash with the character that it escapes; a bracket, perhaps with the weight before it; plain text.
_PARTS = re.compile(r"\\[()\[\]\\]|\\|[(\[]|:\s*([+-]?[.\d]+)\s*\)|[)\]]|[^\\()\[\]:]+|:")
_BREAK_WORD = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Piece:
    """A part of a prompt that has one weight."""

    text: str
    weight: float


BREAK = Piece("BREAK", -1.0)
"""Ends a chunk. Inside a weighted group it has another weight and is a word like any other, as in the web UI."""

_Event = tuple[str, str, float]
"""A bracket, or nothing; a text; the weight of the text without brackets, or the factor of the bracket that opens."""


def parse_weights(text: str) -> list[Piece]:
    """The pieces of a prompt, in order and with neighbours of one weight joined; at least one.

    An open bracket without its closing one acts to the end; a closing one without its opening one is text. The time is
    linear in the text's length, and no depth of nesting is too deep.
    """
    products = {"(": [1.0], "[": [1.0]}  # of all open brackets of a kind, which nest, while the two kinds may cross
    runs: list[tuple[float, list[str]]] = []
    for bracket, part, number in _events(text):
        if bracket == "":
            weight = number * products["("][-1] * products["["][-1]
            if runs and runs[-1][0] == weight:
                runs[-1][1].append(part)
            else:
                runs.append((weight, [part]))
        elif bracket in products:
            products[bracket].append(products[bracket][-1] * number)
        else:
            products["(" if bracket == ")" else "["].pop()
    return [Piece("".join(texts), weight) for weight, texts in runs] or [Piece("", 1.0)]


def _events(text: str) -> list[_Event]:
    """The brackets that act, and the texts between them."""
    events: list[_Event] = []
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}

    def close(opening: str, closing: str, factor: float) -> None:
        events[open_brackets[opening].pop()] = opening, "", factor
        events.append((closing, "", 0.0))

    for match in _PARTS.finditer(text):
        part = match.group()
        if part[0] == "\\":
            events.append(("", part[1:], 1.0))
        elif part in open_brackets:
            open_brackets[part].append(len(events))
            events.append((part, "", ROUND if part == "(" else SQUARE))
        elif part[-1] == ")" and open_brackets["("]:
            weight = _number(match.group(1))
            if weight is None and len(part) > 1:
                events.append(("", part[:-1], 1.0))
            close("(", ")", ROUND if weight is None else weight)
        elif part == "]" and open_brackets["["]:
            close("[", "]", SQUARE)
        elif "BREAK" in part:
            events += _with_breaks(part)
        else:
            events.append(("", part, 1.0))
    return events


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # such as 1.2.3
        return None


def _with_breaks(text: str) -> Iterator[_Event]:
    """Plain text, divided at the word BREAK, which takes the white space around it."""
    first, *rest = _BREAK_WORD.split(text)
    yield "", first.rstrip() if rest else first, 1.0
    for index, part in enumerate(rest, start=1):
        yield "", BREAK.text, BREAK.weight
        yield "", part.lstrip() if index == len(rest) else part.strip(), 1.0
