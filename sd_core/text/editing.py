"""AUTOMATIC1111's prompt editing: `[from:to:when]` changes a prompt at a step, `[a|b]` at every step.

Source: the behaviour of AUTOMATIC1111's web UI 1.10. Its grammar is ambiguous and takes cubic time there; what follows
reads the same language from left to right. A bracket whose content is not well-formed is text, and so is every bracket
around it; well-formed edits beside stray brackets are edits.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Union

_PARTS = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]|\\")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True)
class Steps:
    """The network calls of one run of a sampler, in which a prompt's steps are counted.

    `before` is the number of calls of the first pass if this run is the second one, of a hires image.
    """

    calls: int
    before: int | None = None

    def at(self, when: str) -> int:
        """The step at which a change is due: a fraction of the run if it has a point, else a number of calls."""
        number = float(when)
        if "." in when:
            number = (number - (0.0 if self.before is None else 1.0)) * self.calls
        else:
            number -= self.before or 0
        return int(max(0.0, min(self.calls, number)))


_Item = Union[str, "_Text", "_Scheduled", "_Alternate"]


@dataclass(frozen=True)
class _Text:
    """A text with edits in it, in order."""

    items: list[_Item] = field(default_factory=list)

    @property
    def inner(self) -> list[_Item]:
        return self.items

    def at(self, _step: int) -> list[_Item]:
        """What it consists of at a step, counted from 1."""
        return self.items


@dataclass(frozen=True)
class _Scheduled:
    before: _Text
    after: _Text
    step: int

    @property
    def inner(self) -> list[_Item]:
        return [self.before, self.after]

    def at(self, step: int) -> list[_Item]:
        return (self.before if step <= self.step else self.after).items


@dataclass(frozen=True)
class _Alternate:
    options: list[_Text]

    @property
    def inner(self) -> list[_Item]:
        return [*self.options]

    def at(self, step: int) -> list[_Item]:
        return self.options[(step - 1) % len(self.options)].items


@dataclass(frozen=True)
class _Group:
    """An open bracket with what follows it, divided by colons or bars."""

    bracket: str
    parts: list[_Text] = field(default_factory=lambda: [_Text()])
    marks: list[str] = field(default_factory=list)

    def divide(self, mark: str) -> None:
        self.marks.append(mark)
        self.parts.append(_Text())

    def written(self) -> Iterator[_Item]:
        """The group as text, without its end."""
        for mark, part in zip([self.bracket, *self.marks], self.parts, strict=True):
            yield mark
            yield part

    def closed(self, end: str, steps: Steps) -> _Item | None:
        """What the group means; None if it is not well-formed."""
        bars, colons = self.marks.count("|"), self.marks.count(":")
        if not self.marks or (self.bracket == "(" and (bars, colons) == (0, 1)):
            return _Text([*self.written(), end])
        if self.bracket == "(" or (bars and colons) or colons > 2:
            return None
        if bars:
            return _Alternate(self.parts)
        *texts, when = self.parts
        if any(not isinstance(item, str) for item in when.items):
            return None
        number = _WHEN.fullmatch("".join(map(str, when.items)))
        before = texts[0] if colons == 2 else _Text()
        return None if number is None else _Scheduled(before, texts[-1], steps.at(number.group(1)))


def versions(text: str, steps: Steps) -> list[tuple[int, str]]:
    """The texts that a prompt goes through, each with the last call, counted from 0, that it is used for.

    The last one holds to the end. A prompt that cannot be read as edits is one text, as it is.
    """
    tree = _parse(text, steps) if "[" in text else None
    if tree is None:
        return [(steps.calls, text)]
    ends = {steps.calls}
    for item in _walk(tree):
        if isinstance(item, _Alternate):
            ends.update(range(1, steps.calls + 1))
        elif isinstance(item, _Scheduled) and item.step >= 1:
            ends.add(item.step)
    return [(end, _at(tree, end)) for end in sorted(ends)]


def _parse(text: str, steps: Steps) -> _Text | None:
    """The text as edits; None if a bar outside of brackets or a backslash before nothing leaves it without meaning."""
    root = _Text()
    groups: list[_Group] = []
    for match in _PARTS.finditer(text):
        part = match.group()
        if part == "\\":
            return None
        if part in "([":
            groups.append(_Group(part))
            continue
        if part in ":|" and groups:
            groups[-1].divide(part)
            continue
        item: _Item = part
        if part in _OPENING and groups:
            matches = groups[-1].bracket == _OPENING[part]
            closed = groups[-1].closed(part, steps) if matches else None
            if closed is None:
                _flatten(groups, root)
            else:
                groups.pop()
                item = closed
        (groups[-1].parts[-1] if groups else root).items.append(item)
    _flatten(groups, root)
    return None if "|" in root.items else root


def _flatten(groups: list[_Group], root: _Text) -> None:
    """Turn all open brackets into text; what is complete within them keeps its meaning."""
    for group in groups:
        root.items.extend(group.written())
    groups.clear()


def _walk(tree: _Text) -> Iterator[_Item]:
    waiting: list[_Item] = [tree]
    while waiting:
        item = waiting.pop()
        yield item
        if not isinstance(item, str):
            waiting += item.inner


def _at(tree: _Text, step: int) -> str:
    """The text at a step, counted from 1."""
    texts: list[str] = []
    waiting: list[_Item] = [tree]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            texts.append(item)
        else:
            waiting += reversed(item.at(step))
    return "".join(texts)
