"""Steps of samplers, of many images at once: each with its own timestep, prompts and noise level.

Contexts of different lengths share a forward: each is repeated until all are equally long, which softmax makes exact.
"""

from collections.abc import Collection, Hashable, Sequence
from math import lcm

import torch
from torch import Tensor

from sd_core.engine.kinds.adapted import grouped
from sd_core.engine.kinds.controlled import Controls, bytes_of_controls, cost_of_controls
from sd_core.engine.kinds.extras import departing
from sd_core.engine.kinds.image_prompt import ImageReader, image_tokens
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.kinds.prompts import PromptReader
from sd_core.engine.kinds.rows import Row, firsts_of, rows_of, stacked
from sd_core.engine.pool import LATENT_PIXELS, Pool
from sd_core.models.unet import UNet, UNetConfig
from sd_core.work import UNetWork

NUMBERS = 36
"""Numbers that a UNet holds at its peak for a latent of a row, over its first width: see `bench.memory`."""

MAX_REPEATED = 4
"""Contexts are repeated up to this many times the longest one; beyond that, lengths run apart."""

MAX_SHARED_TOKENS = 16 * 77
"""Contexts are repeated up to this length: attention to so many tokens takes less than a tenth of a step of v1.5."""

COUNTED_TOKENS = 77
"""Tokens of a context whose keys and values are part of NUMBERS."""

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


def fullest(unet: UNet, native_size: int, max_batch: int) -> int:
    """Bytes that a forward of `max_batch` guided images of native size (pixels) holds at its peak, beyond weights."""
    return 2 * max_batch * NUMBERS * unet.config.channels[0] * (native_size**2 // LATENT_PIXELS) * unet.dtype.itemsize


class UNetKind(Kind[UNetWork]):
    """A forward holds as many rows as `max_batch` guided images of native size have; larger images take more room."""

    phase = "denoise"
    interrupts = False

    def __init__(self, pool: Pool, max_batch: int) -> None:
        self._pool, self._max_batch = pool, max_batch
        self._prompts = PromptReader(pool.device)
        self._controls = Controls(self._prompts, pool.device)
        self._images = ImageReader(pool.device)

    @property
    def capacity(self) -> float:
        return 2 * self._max_batch

    def key(self, work: UNetWork) -> Hashable:
        # Rows with contexts of any length share a forward, but not those with and without what changes all of its rows.
        return work.network, work.latents.shape[1:], work.extras.tiling, work.extras.tome_ratio, work.deep is not None

    def cost(self, work: UNetWork) -> float:
        """In rows of native size: activations grow with rows times pixels."""
        pixels = LATENT_PIXELS * work.latents.shape[2:].numel()
        return (len(work.contexts) + cost_of_controls(work)) * max(1.0, pixels / self._pool.native_pixels(work.network))

    def bytes(self, work: UNetWork) -> int:
        unet = self._pool.unet(work.network)
        # Features that are kept stay in memory beside those that the forward works on.
        numbers = len(work.contexts) * (NUMBERS + 2 * work.keeps_deep)
        values = numbers * unet.config.channels[0] * work.latents.shape[2:].numel()
        long = sum(max(0, context.states.shape[1] - COUNTED_TOKENS) for context in work.contexts)
        # Kept once by context and once stacked.
        read = 2 * (long + image_tokens(work)) * _read_width(unet.config)
        return (values + read) * unet.dtype.itemsize + bytes_of_controls(work, unet)

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
        self._prompts.clear()
        self._images.clear()
        self._pool.release()

    def _forward(self, rows: Sequence[Row], tokens: int, *, keeps_deep: bool) -> tuple[Tensor, Tensor | None]:
        """One forward of the network: the output of each row, whose contexts are repeated to `tokens`.

        The deep features of each row too if they are kept.
        """
        network = rows[0].work.network
        step, unet = self._pool.step(network), self._pool.unet(network)
        firsts, images = firsts_of([row.input for row in rows])
        latents, times = stacked([rows[first] for first in firsts], self._pool.device)
        contexts, adapters = [row.context for row in rows], [row.adapters for row in rows]
        given = self._prompts.given((network, unet), contexts, images, tokens, adapters)
        given = self._images.showing(departing(given, rows, unet), rows, unet)
        given = self._controls.steering(given, rows, tokens)
        deep = [row.deep for row in rows if row.deep is not None]
        if deep:
            return step.outermost(latents, times, torch.cat(deep), given), None
        if keeps_deep:
            return step.whole(latents, times, given)
        return step(latents, times, given), None


def _read_width(config: UNetConfig) -> int:
    """Numbers that all attentions to prompts read of one token."""
    transformers = 2 * config.num_res_blocks + 1  # on the way down and up, at each level
    widths = transformers * sum(config.channels[level] for level in config.attention_levels) + config.channels[-1]
    return 2 * widths


def _in_order(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:  # (n_i, C, h, w) each -> (n, C, h, w)
    """The rows of several forwards as one; `order` says for each row in turn where it belongs."""
    if len(parts) == 1:
        return parts[0]
    rows = dict(zip(order, (row for part in parts for row in part.split(1)), strict=True))
    return torch.cat([rows[index] for index in sorted(rows)])
