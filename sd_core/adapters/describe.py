"""What an adapter's file is, from the names and shapes of its tensors and its metadata alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sd_core.adapters.bases import base_of
from sd_core.adapters.contents import contents_of
from sd_core.adapters.families import is_decomposed
from sd_core.adapters.names import Names
from sd_core.adapters.parts import bundled_names

# The parts with as many rows as a layer's rank.
_RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a2")


@dataclass(frozen=True)
class Description:
    """`families` and `modules` count layers, by family and by network; `ranks` are those that occur, from small to
    large. `base` is the family of models it is for, None if the file does not say. `ignored` names tensors that change
    nothing, `embeddings` the words that it brings along.
    """

    families: Mapping[str, int]
    modules: Mapping[str, int]
    ranks: tuple[int, ...]
    base: str | None
    embeddings: tuple[str, ...]
    ignored: tuple[str, ...]


def describe(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], names: Names) -> Description:
    """The description of a file's tensors beside networks with these names; of any base, and whether or not it fits."""
    contents = contents_of(shapes, names)
    families: Counter[str] = Counter()
    ranks: set[int] = set()
    for family, parts in contents.layers.values():
        families[f"{family.name} with DoRA" if is_decomposed(parts.stored) else family.name] += 1
        ranked = [shapes[parts.stored[part]] for part in _RANKED if part in parts.stored]
        ranks.update(shape[0] for shape in ranked if shape)
    return Description(
        dict(families),
        dict(Counter(network for network, _ in contents.layers)),
        tuple(sorted(ranks)),
        base_of(shapes, metadata),
        bundled_names(shapes),
        contents.ignored,
    )
