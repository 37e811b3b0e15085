"""Steps of samplers, of many images at once: each with its own timestep, prompts and noise level.

Contexts of different lengths share a forward: each is repeated until all are equally long, which softmax makes exact.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from math import lcm

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.device import upload
from sd_core.engine.kinds.adapted import adapters_of, grouped, keys_of
from sd_core.engine.kinds.extras import departing
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.kinds.rows import Row, rows_of
from sd_core.engine.pool import LATENT_PIXELS, Pool
from sd_core.models.given import Given, KeysValues
from sd_core.models.unet import UNetConfig
from sd_core.work import UNetWork

NUMBERS = 36
"""Numbers that a UNet holds at its peak for a latent of a row, over its first width: see `bench.memory`."""

# Prompts whose keys and values are kept, and their bytes: 7.7 MB each with v1.5 in float32.
READ, READ_BYTES = 64, 2**28

MAX_REPEATED = 4
"""Contexts are repeated up to this many times the longest one; beyond that, lengths run apart."""

MAX_SHARED_TOKENS = 16 * 77
"""Contexts are repeated up to this length: attention to so many tokens takes less than a tenth of a step of v1.5."""

COUNTED_TOKENS = 77
"""Tokens of a context whose keys and values are part of NUMBERS."""

# The same, stacked for whole forwards: most steps run with the prompts of the step before.
STACKED, STACKED_BYTES = 4, 2**28

Read = dict[str, KeysValues]
Answer = Tensor | tuple[Tensor, Tensor]


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
        self._read: LRU[Hashable, Read] = LRU(READ, READ_BYTES, _size)
        self._stacked: LRU[Hashable, Given] = LRU(STACKED, STACKED_BYTES, lambda given: _size(given.keys_values))

    @property
    def capacity(self) -> float:
        return 2 * self._max_batch

    def key(self, work: UNetWork) -> Hashable:
        # Rows with contexts of any length share a forward, but not those with and without what changes all of its rows.
        return work.network, work.latents.shape[1:], work.extras.tiling, work.extras.tome_ratio, work.deep is not None

    def cost(self, work: UNetWork) -> float:
        """In rows of native size: activations grow with rows times pixels."""
        pixels = LATENT_PIXELS * work.latents.shape[2:].numel()
        return len(work.contexts) * max(1.0, pixels / self._pool.native_pixels(work.network))

    def bytes(self, work: UNetWork) -> int:
        unet = self._pool.unet(work.network)
        # Features that are kept stay in memory beside those that the forward works on.
        values = (NUMBERS + 2 * work.keeps_deep) * unet.config.channels[0] * work.latents.shape[2:].numel()
        long = sum(max(0, context.states.shape[1] - COUNTED_TOKENS) for context in work.contexts)
        # Kept once by context and once stacked.
        return (len(work.contexts) * values + 2 * long * _read_width(unet.config)) * unet.dtype.itemsize

    def run(self, works: Sequence[UNetWork]) -> Sequence[Answer]:
        order = grouped([work.attached.adapters for work in works])
        answers = dict(zip(order, self._run([works[index] for index in order]), strict=True))
        return [answers[index] for index in range(len(works))]

    def _run(self, works: Sequence[UNetWork]) -> Sequence[Answer]:
        rows, counts = rows_of(works), [len(work.contexts) for work in works]
        keeps_deep = any(work.keeps_deep for work in works)
        order, outputs, features = list[int](), list[Tensor](), list[Tensor]()
        for tokens, lengths in shared_lengths([row.tokens for row in rows]):
            chosen = [index for index, row in enumerate(rows) if row.tokens in lengths]
            output, deep = self._forward([rows[index] for index in chosen], tokens, keeps_deep=keeps_deep)
            order += chosen
            outputs.append(output)
            if deep is not None:
                features.append(deep)
        answers: Sequence[Tensor] = _in_order(outputs, order).split(counts)
        if not features:
            return answers
        return [
            # A copy, because a view would keep the features of all rows alive.
            (own, its_deep.clone()) if work.keeps_deep else own
            for work, own, its_deep in zip(works, answers, _in_order(features, order).split(counts), strict=True)
        ]

    def smallest(self, work: UNetWork) -> UNetWork | None:
        return None if len(work.contexts) == 1 else rows_of([work])[0].alone()

    def run_in_parts(self, work: UNetWork) -> Answer:
        answers = [self.run([row.alone()])[0] for row in rows_of([work])]
        tensors = [answer for answer in answers if isinstance(answer, Tensor)]
        if tensors:
            return torch.cat(tensors)
        output, deep = (torch.cat(each) for each in zip(*answers, strict=True))
        return output, deep

    def warm_up(self) -> None:
        self._pool.warm_up()

    def release(self) -> None:
        self._read.clear()
        self._stacked.clear()
        self._pool.release()

    def _forward(self, rows: Sequence[Row], tokens: int, *, keeps_deep: bool) -> tuple[Tensor, Tensor | None]:
        """One forward of the network: the output of each row, whose contexts are repeated to `tokens`.

        The deep features of each row too if they are kept.
        """
        network = rows[0].work.network
        step = self._pool.step(network)
        first_rows = {row.input: row for row in reversed(rows)}
        inputs = list(dict.fromkeys(row.input for row in rows))
        latents = torch.cat([first_rows[each].latents for each in inputs])
        timesteps = torch.tensor([first_rows[each].work.timestep for each in inputs], dtype=torch.float32)
        times = upload(timesteps, self._pool.device)
        images = [inputs.index(row.input) for row in rows]
        given = departing(self._given(rows, images, tokens), rows, self._pool.unet(network))
        deep = [row.deep for row in rows if row.deep is not None]
        if deep:
            return step.outermost(latents, times, torch.cat(deep), given), None
        if keeps_deep:
            return step.whole(latents, times, given)
        return step(latents, times, given), None

    def _given(self, rows: Sequence[Row], images: Sequence[int], tokens: int) -> Given:
        """What a forward is given; the same object as long as rows, prompts and adapters stay the same."""
        network = rows[0].work.network
        key = network, tuple(_read_key(row) for row in rows), tuple(images), tokens
        given = self._stacked.get(key)
        if given is None:
            reads = self._reads(network, rows)
            stacked = {
                name: (
                    torch.cat([_repeated(read[name][0], tokens) for read in reads]),
                    torch.cat([_repeated(read[name][1], tokens) for read in reads]),
                )
                for name in reads[0]
            }
            first_rows = dict(zip(reversed(images), reversed(rows), strict=True))
            of_inputs = [first_rows[image].adapters for image in range(len(first_rows))]
            is_row = list(images) == list(range(len(rows)))
            given = Given(
                stacked,
                None if is_row else upload(torch.tensor(images), self._pool.device),
                adapters_of(of_inputs),
                None if is_row else adapters_of([row.adapters for row in rows]),
            )
            self._stacked.put(key, given)
        return given

    def _reads(self, network: str, rows: Sequence[Row]) -> list[Read]:
        """Keys and values of each row's context, computed for those that are not kept, in one pass for each length."""
        kept = {_read_key(row): self._read.get((network, _read_key(row))) for row in rows}
        reads = {key: read for key, read in kept.items() if read is not None}
        unknown: dict[int, dict[Hashable, Row]] = {}
        for row in rows:
            if _read_key(row) not in reads:
                unknown.setdefault(row.tokens, {})[_read_key(row)] = row
        for of_length in unknown.values():
            adapters = Given(adapters=adapters_of([row.adapters for row in of_length.values()]))
            states = torch.cat([row.context.states for row in of_length.values()])
            together = self._pool.unet(network).read(states, adapters)
            for index, key in enumerate(of_length):
                # Copies, because a view would keep the whole batch alive.
                reads[key] = {
                    name: (keys[index : index + 1].clone(), values[index : index + 1].clone())
                    for name, (keys, values) in together.items()
                }
                self._read.put((network, key), reads[key])
        return [reads[_read_key(row)] for row in rows]


def _read_key(row: Row) -> Hashable:
    """Equal for rows whose contexts have the same keys and values."""
    return row.context.key, keys_of(row.adapters)


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


def _in_order(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:  # (n_i, C, h, w) each -> (n, C, h, w)
    """The rows of several forwards as one; `order` says for each row in turn where it belongs."""
    if len(parts) == 1:
        return parts[0]
    rows = dict(zip(order, (row for part in parts for row in part.split(1)), strict=True))
    return torch.cat([rows[index] for index in sorted(rows)])
