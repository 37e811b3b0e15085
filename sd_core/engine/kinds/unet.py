"""Steps of samplers, of many images at once: each with its own timestep, prompts and noise level.

Contexts of different lengths share a forward: each is repeated until all are equally long, which softmax makes exact.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.device import upload
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.pool import LATENT_PIXELS, Pool
from sd_core.models.given import Given, KeysValues
from sd_core.models.unet import UNetConfig
from sd_core.work import Context, UNetWork

NUMBERS = 36
"""Numbers that a UNet holds at its peak for a latent of a row, over its first width: see `bench.memory`."""

READ_BYTES = 2**28
"""Keys and values that are kept: a prompt has 7.7 MB with v1.5 in float32."""

MAX_REPEATED = 4
"""Contexts are repeated up to this many times the longest one; beyond that, lengths run apart."""

MAX_SHARED_TOKENS = 16 * 77
"""Contexts are repeated up to this length: attention to so many tokens takes less than a tenth of a step of v1.5."""

COUNTED_TOKENS = 77
"""Tokens of a context whose keys and values are part of NUMBERS."""

STACKED_BYTES = 2**28
"""The same, stacked for whole forwards: most steps run with the prompts of the step before."""

Read = dict[str, KeysValues]


@dataclass(frozen=True)
class _Row:
    """A row of a forward: its work, which of the work's inputs it continues, and its context."""

    work: int
    image: int
    context: Context

    @property
    def tokens(self) -> int:
        return self.context.states.shape[1]


def shared_lengths(lengths: Collection[int]) -> list[tuple[int, list[int]]]:
    """Which lengths of contexts share a forward, longest first, each group with the length that all are repeated to."""
    groups: list[tuple[int, list[int]]] = []
    for length in sorted(set(lengths), reverse=True):
        for index, (common, members) in enumerate(groups):
            joint = lcm(common, length)
            if joint <= MAX_SHARED_TOKENS and joint <= MAX_REPEATED * members[0]:
                groups[index] = joint, [*members, length]
                break
        else:
            groups.append((length, [length]))
    return groups


class UNetKind(Kind[UNetWork]):
    """A forward holds as many rows as `max_batch` guided images of native size have; larger images take more room."""

    phase = "denoise"
    interrupts = False

    def __init__(self, pool: Pool, max_batch: int) -> None:
        self._pool, self._max_batch = pool, max_batch
        self._read: LRU[Hashable, Read] = LRU(READ_BYTES, _size)
        self._stacked: LRU[Hashable, Given] = LRU(STACKED_BYTES, lambda given: _size(given.keys_values))

    @property
    def capacity(self) -> float:
        return 2 * self._max_batch

    def key(self, work: UNetWork) -> Hashable:
        return work.network, work.latents.shape[1:]

    def cost(self, work: UNetWork) -> float:
        """In rows of native size: activations grow with rows times pixels."""
        pixels = LATENT_PIXELS * work.latents.shape[2:].numel()
        return len(work.contexts) * max(1.0, pixels / self._pool.native_pixels(work.network))

    def bytes(self, work: UNetWork) -> int:
        unet = self._pool.unet(work.network)
        numbers = len(work.contexts) * NUMBERS * unet.config.channels[0] * work.latents.shape[2:].numel()
        long = sum(max(0, context.states.shape[1] - COUNTED_TOKENS) for context in work.contexts)
        # Kept once by context and once stacked.
        return (numbers + 2 * long * _read_width(unet.config)) * unet.dtype.itemsize

    def run(self, works: Sequence[UNetWork]) -> Sequence[Tensor]:
        rows = [
            _Row(index, image, context)
            for index, work in enumerate(works)
            for image, context in zip(work.image_of_row, work.contexts, strict=True)
        ]
        groups = shared_lengths([row.tokens for row in rows])
        if len(groups) == 1:
            output = self._forward(works, rows, groups[0][0])
        else:
            outputs: dict[int, Tensor] = {}
            for tokens, lengths in groups:
                chosen = [index for index, row in enumerate(rows) if row.tokens in lengths]
                some = self._forward(works, [rows[index] for index in chosen], tokens)
                outputs |= zip(chosen, some.split(1), strict=True)
            output = torch.cat([outputs[index] for index in range(len(rows))])
        answers: Sequence[Tensor] = output.split([len(work.contexts) for work in works])
        return answers

    def smallest(self, work: UNetWork) -> UNetWork | None:
        return None if len(work.contexts) == 1 else self._row(work, 0)

    def run_in_parts(self, work: UNetWork) -> Tensor:
        return torch.cat([self.run([self._row(work, row)])[0] for row in range(len(work.contexts))])

    def warm_up(self) -> None:
        self._pool.warm_up()

    def release(self) -> None:
        self._read.clear()
        self._stacked.clear()
        self._pool.release()

    @staticmethod
    def _row(work: UNetWork, row: int) -> UNetWork:
        image = work.image_of_row[row]
        return replace(
            work, latents=work.latents[image : image + 1], contexts=work.contexts[row : row + 1], image_of_row=(0,)
        )

    def _forward(self, works: Sequence[UNetWork], rows: Sequence[_Row], tokens: int) -> Tensor:
        """One forward of the network: the output of each row, whose contexts are repeated to `tokens`."""
        network = works[0].network
        position = {pair: index for index, pair in enumerate(dict.fromkeys((row.work, row.image) for row in rows))}
        latents = torch.cat([works[work].latents[image : image + 1] for work, image in position])
        timesteps = torch.tensor([works[work].timestep for work, _ in position], dtype=torch.float32)
        images = [position[row.work, row.image] for row in rows]
        given = self._given(network, [row.context for row in rows], images, tokens)
        output: Tensor = self._pool.step(network)(latents, upload(timesteps, self._pool.device), given)
        return output

    def _given(self, network: str, contexts: Sequence[Context], images: Sequence[int], tokens: int) -> Given:
        """What a forward is given; the same object as long as rows and prompts stay the same."""
        key = network, tuple(context.key for context in contexts), tuple(images), tokens
        given = self._stacked.get(key)
        if given is None:
            reads = self._reads(network, contexts)
            stacked = {
                name: (
                    torch.cat([_repeated(read[name][0], tokens) for read in reads]),
                    torch.cat([_repeated(read[name][1], tokens) for read in reads]),
                )
                for name in reads[0]
            }
            rows = (
                None if list(images) == list(range(len(contexts))) else upload(torch.tensor(images), self._pool.device)
            )
            given = Given(stacked, rows)
            self._stacked.put(key, given)
        return given

    def _reads(self, network: str, contexts: Sequence[Context]) -> list[Read]:
        """Keys and values of each context, computed for those that are not kept, in one pass for each length."""
        kept = {context.key: self._read.get((network, context.key)) for context in contexts}
        reads = {key: read for key, read in kept.items() if read is not None}
        unknown: dict[int, dict[Hashable, Tensor]] = {}
        for context in contexts:
            if context.key not in reads:
                unknown.setdefault(context.states.shape[1], {})[context.key] = context.states
        for states in unknown.values():
            together = self._pool.unet(network).read(torch.cat(list(states.values())))
            for index, key in enumerate(states):
                # Copies, because a view would keep the whole batch alive.
                reads[key] = {
                    name: (keys[index : index + 1].clone(), values[index : index + 1].clone())
                    for name, (keys, values) in together.items()
                }
                self._read.put((network, key), reads[key])
        return [reads[context.key] for context in contexts]


def _size(keys_values: Mapping[str, KeysValues]) -> int:
    return sum(each.nbytes for pair in keys_values.values() for each in pair)


def _read_width(config: UNetConfig) -> int:
    """Numbers that all attentions to prompts read of one token."""
    transformers = 2 * config.num_res_blocks + 1  # on the way down and up, at each level
    widths = transformers * sum(config.channels[level] for level in config.attention_levels) + config.channels[-1]
    return 2 * widths


def _repeated(x: Tensor, tokens: int) -> Tensor:  # (1, S, dim)
    """Repeated to so many tokens."""
    return x if x.shape[1] == tokens else x.repeat(1, tokens // x.shape[1], 1)
