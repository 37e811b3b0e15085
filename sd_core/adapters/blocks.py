"""Block weights: factors of an adapter by part of the networks, as `lbw=` writes them.

Source: hako-mikan's extension "LoRA Block Weight" for AUTOMATIC1111's web UI.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType
from typing import Self

INPUTS = OUTPUTS = 12
"""Blocks of v1's UNet on the way down, and on the way up."""

ALL = ("BASE", *(f"IN{n:02}" for n in range(INPUTS)), "M00", *(f"OUT{n:02}" for n in range(OUTPUTS)))

WITH_ATTENTION = ("BASE", *(f"IN{n:02}" for n in (1, 2, 4, 5, 7, 8)), "M00", *(f"OUT{n:02}" for n in range(3, OUTPUTS)))
"""The blocks that most files change. Of the others a list of so many numbers leaves nothing."""

PRESETS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "NONE": (0,) * 17,
        "ALL": (1,) * 17,
        "INS": (1, 1, 1, 1) + (0,) * 13,
        "IND": (1, 0, 0, 0, 1, 1, 1) + (0,) * 10,
        "INALL": (1,) * 7 + (0,) * 10,
        "MIDD": (1, 0, 0, 0) + (1,) * 8 + (0,) * 5,
        "OUTD": (1,) + (0,) * 7 + (1,) * 4 + (0,) * 5,
        "OUTS": (1,) + (0,) * 11 + (1,) * 5,
        "OUTALL": (1,) + (0,) * 7 + (1,) * 9,
        "ALL0.5": (0.5,) * 17,
    }
)

MAX_FACTOR = 16.0
"""The largest of them: a strength beyond any use, that cannot overflow."""

_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.|(middle)_block\.")


@dataclass(frozen=True)
class Blocks:
    """One factor for each of `ALL`."""

    factors: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """A preset's name, or 17 or 26 numbers between commas. Raises `ValueError` that says what is wrong."""
        factors = PRESETS.get(text.strip().upper()) or tuple(map(_number, text.split(",")))
        if len(factors) == len(WITH_ATTENTION):
            by_name = dict(zip(WITH_ATTENTION, factors, strict=True))
            factors = tuple(by_name.get(name, 0.0) for name in ALL)
        if len(factors) != len(ALL):
            raise ValueError(f"has {len(factors)} numbers; 17 or 26 are needed, or one of {', '.join(PRESETS)}")
        return cls(factors)

    @property
    def base(self) -> float:
        """The text encoder's factor."""
        return self.factors[0]

    def of(self, name: str) -> float:
        """The factor of a UNet's layer. What is in no block, as the time embedding, keeps its strength."""
        match = _BLOCK.match(name)
        if match is None:
            return 1.0
        if match[3]:
            return self.factors[ALL.index("M00")]
        block = ("IN" if match[1] == "input" else "OUT") + f"{int(match[2]):02}"
        return self.factors[ALL.index(block)] if block in ALL else 1.0


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number) or abs(number) > MAX_FACTOR:
        raise ValueError(f"{text.strip()[:20]!r} is not a number from -{MAX_FACTOR:g} to {MAX_FACTOR:g}, or a preset")
    return number
