"""Different adapters in one forward: each acts on its own entries of every layer's input and output."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from sd_core.models.given import Adapter
from sd_core.networks import Added, Applied

EVERYTHING = slice(None)


@dataclass(frozen=True)
class Entries:
    """What is added to one layer: to the entries of each slice, a part of its own."""

    parts: tuple[tuple[slice, Added], ...]

    def __call__(self, x: Tensor, out: Tensor, padding: tuple[int, int], gates: Tensor | None = None, /) -> Tensor:
        """Add all parts in place: an `Adapter`."""
        for entries, added in self.parts:
            if entries is EVERYTHING:
                added.add_to(out, x, padding, gates)
            else:
                added.add_to(out[entries], x[entries], padding, None if gates is None else gates[entries])
        return out


def adapters_of(entries: Sequence[tuple[Applied, ...]]) -> dict[str, Adapter]:
    """The adapters of a forward by layer, from those of each of its entries (inputs or rows) in turn."""
    parts: dict[str, list[tuple[slice, Added]]] = {}
    for part, adapters in _runs(entries):
        for adapter in adapters:
            for name, added in adapter.layers.items():
                parts.setdefault(name, []).append((part, added))
    return {name: Entries(tuple(of_layer)) for name, of_layer in parts.items()}


def keys_of(adapters: Iterable[Applied]) -> Hashable:
    """Equal for adapters that add the same."""
    return tuple(adapter.key for adapter in adapters)


def grouped(adapters: Sequence[tuple[Applied, ...]]) -> list[int]:
    """An order in which entries with equal adapters are neighbours: their indices, first come first."""
    first: dict[Hashable, int] = {}
    for index, each in enumerate(adapters):
        first.setdefault(keys_of(each), index)
    return sorted(range(len(adapters)), key=lambda index: first[keys_of(adapters[index])])


def _runs(entries: Sequence[tuple[Applied, ...]]) -> Iterator[tuple[slice, tuple[Applied, ...]]]:
    """Neighbours with equal adapters, as one slice each."""
    start = 0
    for _, run in groupby(entries, keys_of):
        members = list(run)
        end = start + len(members)
        yield EVERYTHING if len(members) == len(entries) else slice(start, end), members[0]
        start = end
