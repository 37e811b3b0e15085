"""AUTOMATIC1111's tags: `<lora:name:weight>` in a prompt names an adapter and is not part of the text.

Source: the behaviour of AUTOMATIC1111's web UI 1.10; `lbw` is that of the extension "LoRA Block Weight".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sd_core.checks import shorten
from sd_core.errors import InvalidRequest

MAX_WEIGHT = 4.0

# Each tag of any kind: those that do not name adapters are removed from the text too. Without "<" inside, the time is
# linear in the length of the text.
_TAG = re.compile(r"<(\w+):([^<>]+)>")
_KINDS = ("lora", "lyco")
_POSITIONS = ("te", "unet", "dyn")
_ALIASES = {"w": "lbw"}


@dataclass(frozen=True)
class Tag:
    """An adapter that a prompt names, with the strength of its part in the text encoder and in the UNet.

    `rank` is the number of ranks that are used, None for all. `blocks` are block weights as they are written.
    """

    name: str
    text: float = 1.0
    unet: float = 1.0
    rank: int | None = None
    blocks: str | None = None


@dataclass(frozen=True)
class Tagged:
    """A prompt's text without its tags, the adapters that these name, and warnings."""

    text: str
    tags: tuple[Tag, ...] = ()
    warnings: tuple[str, ...] = ()


def read_tags(text: str, field: str) -> Tagged:
    """Take the tags out of a prompt; `field` is its name in errors and warnings.

    Raises `InvalidRequest` for a tag without a name, and for a weight that is not a number within the limits.
    """
    tags, warnings = list[Tag](), list[str]()
    for match in _TAG.finditer(text):
        kind, content = match.groups()
        where = f"{field}: {shorten(match.group())}"
        if kind.lower() not in _KINDS:
            warnings.append(f"{where} was left out: there are no tags of this kind here")
            continue
        tag, unknown = _tag(content.split(":"), where)
        tags.append(tag)
        warnings += [f"{where}: {name}= is not supported and did nothing" for name in unknown]
    return Tagged(_TAG.sub("", text), tuple(tags), tuple(dict.fromkeys(warnings)))


def has_tags(text: str) -> bool:
    """Whether a text names adapters."""
    return any(match[1].lower() in _KINDS for match in _TAG.finditer(text))


def _tag(parts: Sequence[str], where: str) -> tuple[Tag, list[str]]:
    """The tag, and the names of its options that are not supported."""
    named = dict(_named(parts))
    positional = [part.strip() for part in parts if "=" not in part]
    if not positional or not positional[0]:
        raise InvalidRequest(f"{where}: the adapter's name is missing")
    name, *rest = positional
    if len(rest) == 2 and rest[1] and not _is_number(rest[1]):
        named.setdefault("lbw", rest.pop())
    options = {**dict(zip(_POSITIONS, rest, strict=False)), **named}
    text = _weight(options.get("te", "1"), where)
    unet = _weight(options["unet"], where) if "unet" in options else text
    rank = None if "dyn" not in options else _rank(options["dyn"], where)
    return Tag(name, text, unet, rank, options.get("lbw")), [each for each in named if each not in (*_POSITIONS, "lbw")]


def _named(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for part in parts:
        name, equals, value = part.partition("=")
        if equals:
            name = name.strip().lower()
            yield _ALIASES.get(name, name), value.strip()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _weight(text: str, where: str) -> float:
    weight = float(text) if _is_number(text) else None
    if weight is None or not abs(weight) <= MAX_WEIGHT:  # NaN too
        raise InvalidRequest(f"{where}: weights are numbers from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return weight


def _rank(text: str, where: str) -> int:
    if not text.isdecimal() or not 1 <= int(text[:6]) <= 99_999:
        raise InvalidRequest(f"{where}: dyn is the number of ranks to use, at least 1")
    return int(text)
