"""The layers that an adapter's file changes, and the family of each change."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sd_core.adapters.families import Family, family_of
from sd_core.adapters.names import Layer, Names
from sd_core.adapters.parts import Parts, found_in


@dataclass(frozen=True)
class Contents:
    """`ignored` are the names of the tensors that change nothing."""

    layers: Mapping[Layer, tuple[Family, Parts]]
    ignored: tuple[str, ...]


def contents_of(stored: Iterable[str], names: Names) -> Contents:
    """What tensors of these names change."""
    found = found_in(stored, names)
    layers: dict[Layer, tuple[Family, Parts]] = {}
    ignored = list(found.left)
    for layer, parts in found.layers.items():
        family = family_of(parts.stored)
        ignored += (name for part, name in parts.stored.items() if family is None or part not in family.parts)
        if family is not None:
            layers[layer] = family, parts
    return Contents(layers, tuple(ignored))
