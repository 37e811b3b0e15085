"""ComfyUI's emphasis: `(text)` is 1.1 times what is around it, `(text:1.3)` is 1.3 whatever is around it.

Source: the behaviour of ComfyUI's text encoding nodes, unbalanced brackets included. There is nothing else: square
brackets, BREAK, AND and edits are text.
"""

from collections.abc import Mapping

from sd_core.text.weights import ROUND, Piece

# Escaped brackets and what stands for them meanwhile; a prompt cannot hold NUL itself.
_ESCAPES = {"\\)": "\0\1", "\\(": "\0\2"}


def parse_comfy(text: str) -> list[Piece]:
    """The pieces of a prompt, in order; at least one.

    An open bracket without its closing one is text to the end, unless the text ends with a closing bracket. The time is
    linear in the text's length, and no depth of nesting is too deep.
    """
    for written, stand_in in _ESCAPES.items():
        text = text.replace(written, stand_in)
    ends = _ends(text)
    pieces: list[Piece] = []
    waiting = [(0, len(text), 1.0)]
    while waiting:
        start, end, weight = waiting.pop()
        first = _next_open(text, start, end, ends)
        pieces.append(Piece(text[start:first], weight))
        if first == end:
            continue
        last = min(ends[first], end - 1)
        waiting.append((last + 1, end, weight))
        if text[last] == ")":
            waiting.append(_inside(text, first + 1, last, weight))
        else:
            pieces.append(Piece(text[first : last + 1], weight))
    return [Piece(_unescaped(piece.text), piece.weight) for piece in pieces if piece.text] or [Piece("", 1.0)]


def _ends(text: str) -> Mapping[int, int]:
    """Where each bracket that opens a group is closed; the text's length if it is not.

    A closing bracket too many makes the next opening one text.
    """
    ends: dict[int, int] = {}
    opened: list[int] = []
    surplus = 0
    for index, character in enumerate(text):
        if character == "(" and surplus:
            surplus -= 1
        elif character == "(":
            opened.append(index)
            ends[index] = len(text)
        elif character == ")" and opened:
            ends[opened.pop()] = index
        elif character == ")":
            surplus += 1
    return ends


def _next_open(text: str, start: int, end: int, ends: Mapping[int, int]) -> int:
    """The first bracket in a range that opens a group; the range's end if there is none."""
    found = text.find("(", start, end)
    while found != -1 and found not in ends:
        found = text.find("(", found + 1, end)
    return end if found == -1 else found


def _inside(text: str, start: int, end: int, weight: float) -> tuple[int, int, float]:
    """The range within a group's brackets, without its weight, and that weight."""
    colon = text.rfind(":", start + 1, end)
    if colon != -1:
        try:
            return start, colon, float(text[colon + 1 : end])
        except ValueError:
            pass  # the colon is part of the text
    return start, end, weight * ROUND


def _unescaped(text: str) -> str:
    for written, stand_in in _ESCAPES.items():
        text = text.replace(stand_in, written[1])
    return text
