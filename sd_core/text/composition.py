"""AUTOMATIC1111's `AND`: several prompts that guide one image, each with a weight."""

import re

from sd_core.text.weights import Piece

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*")


def split_prompt(text: str) -> list[Piece]:
    """The prompts that `AND` joins, each with the weight that a `:1.2` at its end gives it; a lone one may have it too.

    Source: Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models", as AUTOMATIC1111's web
    UI writes it.
    """
    return [_with_weight(part) for part in _AND.split(text)]


def _with_weight(text: str) -> Piece:
    before, colon, after = text.rpartition(":")
    weight = _WEIGHT.fullmatch(after) if colon else None
    if weight is None:
        return Piece(text.rstrip(), 1.0)
    return Piece(before.rstrip(), float(weight.group(1)))
