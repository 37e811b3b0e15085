"""What an image is made of at each of its steps: the contexts of its prompts."""

from dataclasses import dataclass
from typing import Protocol

from sd_core.work import Call, Context


@dataclass(frozen=True)
class Rows:
    """The contexts of one call. The prediction is uncond + scale * sum of weight_i * (cond_i - uncond)."""

    positive: tuple[tuple[Context, float], ...]
    negative: Context


class Conditioning(Protocol):
    """The prompts of one image; they may change from step to step."""

    def at(self, call: Call) -> Rows: ...


@dataclass(frozen=True)
class Constant:
    """The same prompt and negative prompt at every step."""

    positive: Context
    negative: Context

    def at(self, _call: Call) -> Rows:
        return Rows(((self.positive, 1.0),), self.negative)
