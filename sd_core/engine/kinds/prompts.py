"""Prompts of a forward -> keys and values, computed once a prompt and stacked once for the same rows."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.device import upload
from sd_core.engine.kinds.adapted import adapters_of, keys_of
from sd_core.models.given import Given, KeysValues
from sd_core.models.unet import Encoder
from sd_core.networks import Applied
from sd_core.work import Context

# Prompts whose keys and values are kept, and their bytes: 7.7 MB each with v1.5 in float32.
READ, READ_BYTES = 64, 2**28

# The same, stacked for whole forwards: most steps run with the prompts of the step before.
STACKED, STACKED_BYTES = 8, 2**28

Read = dict[str, KeysValues]
Adapters = tuple[Applied, ...]


class PromptReader:
    """Keeps what the attentions of networks read of prompts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read: LRU[Hashable, Read] = LRU(READ, READ_BYTES, _size)
        self._stacked: LRU[Hashable, Given] = LRU(STACKED, STACKED_BYTES, lambda given: _size(given.keys_values))

    def given(
        self,
        network: tuple[Hashable, Encoder],
        contexts: Sequence[Context],
        images: Sequence[int],
        tokens: int,
        adapters: Sequence[Adapters],
    ) -> Given:
        """What a forward of a network is given, which is named by its key.

        Row i continues input `images[i]` with `contexts[i]`, repeated to `tokens`, and has the `adapters[i]`. It is the
        same object as long as all of these stay the same.
        """
        reading = [(context.key, keys_of(own)) for context, own in zip(contexts, adapters, strict=True)]
        key = network[0], tuple(reading), tuple(images), tokens
        given = self._stacked.get(key)
        if given is None:
            reads = self._reads(network, contexts, adapters, reading)
            stacked = {
                name: (
                    torch.cat([_repeated(read[name][0], tokens) for read in reads]),
                    torch.cat([_repeated(read[name][1], tokens) for read in reads]),
                )
                for name in reads[0]
            }
            of_inputs = dict(zip(reversed(images), reversed(adapters), strict=True))
            is_row = list(images) == list(range(len(contexts)))
            given = Given(
                stacked,
                None if is_row else upload(torch.tensor(images), self._device),
                adapters_of([of_inputs[image] for image in range(len(of_inputs))]),
                None if is_row else adapters_of(adapters),
            )
            self._stacked.put(key, given)
        return given

    def clear(self) -> None:
        self._read.clear()
        self._stacked.clear()

    def _reads(
        self,
        network: tuple[Hashable, Encoder],
        contexts: Sequence[Context],
        adapters: Sequence[Adapters],
        reading: Sequence[Hashable],
    ) -> list[Read]:
        """Keys and values for each row, computed for those that are not kept, in one pass for each length."""
        name, encoder = network
        kept = {key: self._read.get((name, key)) for key in reading}
        reads = {key: read for key, read in kept.items() if read is not None}
        unknown: dict[int, dict[Hashable, tuple[Tensor, Adapters]]] = {}
        for key, context, own in zip(reading, contexts, adapters, strict=True):
            if key not in reads:
                unknown.setdefault(context.states.shape[1], {})[key] = context.states, own
        for of_length in unknown.values():
            states = torch.cat([states for states, _ in of_length.values()])
            together = encoder.read(states, Given(adapters=adapters_of([own for _, own in of_length.values()])))
            for index, key in enumerate(of_length):
                # Copies, because a view would keep the whole batch alive.
                reads[key] = {
                    attention: (keys[index : index + 1].clone(), values[index : index + 1].clone())
                    for attention, (keys, values) in together.items()
                }
                self._read.put((name, key), reads[key])
        return [reads[key] for key in reading]


def _size(keys_values: Mapping[str, KeysValues]) -> int:
    return sum(each.nbytes for pair in keys_values.values() for each in pair)


def _repeated(x: Tensor, tokens: int) -> Tensor:  # (1, S, dim)
    """Repeated to so many tokens."""
    return x if x.shape[1] == tokens else x.repeat(1, tokens // x.shape[1], 1)
