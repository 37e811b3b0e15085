"""Steps of samplers, of many images at once: each with its own timestep, prompts and noise level."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.device import upload
from sd_core.engine.kinds.extras import departing
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.pool import LATENT_PIXELS, Pool
from sd_core.models.given import Given, KeysValues
from sd_core.work import Context, UNetWork

NUMBERS = 36
"""Numbers that a UNet holds at its peak for a latent of a row, over its first width: see `bench.memory`."""

READ_BYTES = 2**28
"""Keys and values that are kept: a prompt has 7.7 MB with v1.5 in float32."""

STACKED_BYTES = 2**28
"""The same, stacked for whole forwards: most steps run with the prompts of the step before."""

Read = dict[str, KeysValues]
Answer = Tensor | tuple[Tensor, Tensor]


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
        extras = work.extras.tiling, work.extras.tome_ratio, work.deep is not None
        return work.network, work.latents.shape[1:], work.contexts[0].states.shape[1:], extras

    def cost(self, work: UNetWork) -> float:
        """In rows of native size: activations grow with rows times pixels."""
        pixels = LATENT_PIXELS * work.latents.shape[2:].numel()
        return len(work.contexts) * max(1.0, pixels / self._pool.native_pixels(work.network))

    def bytes(self, work: UNetWork) -> int:
        unet = self._pool.unet(work.network)
        # Features that are kept stay in memory beside those that the forward works on.
        numbers = NUMBERS + 2 * work.keeps_deep
        values = numbers * unet.config.channels[0] * work.latents.shape[2:].numel()
        return len(work.contexts) * values * unet.dtype.itemsize

    def run(self, works: Sequence[UNetWork]) -> Sequence[Answer]:
        network = works[0].network
        step, rows = self._pool.step(network), [len(work.contexts) for work in works]
        latents = torch.cat([work.latents for work in works])
        timesteps = [work.timestep for work in works for _ in work.latents]
        times = upload(torch.tensor(timesteps, dtype=torch.float32), self._pool.device)
        given = departing(self._given(works), works, self._pool.unet(network))
        features = [work.deep for work in works if work.deep is not None]
        if features:
            shallow: Sequence[Tensor] = step.outermost(latents, times, torch.cat(features), given).split(rows)
            return shallow
        if any(work.keeps_deep for work in works):
            output, deep = step.whole(latents, times, given)
            return [
                # A copy, because a view would keep the features of all rows alive.
                (own, its_deep.clone()) if work.keeps_deep else own
                for work, own, its_deep in zip(works, output.split(rows), deep.split(rows), strict=True)
            ]
        answers: Sequence[Tensor] = step(latents, times, given).split(rows)
        return answers

    def smallest(self, work: UNetWork) -> UNetWork | None:
        return None if len(work.contexts) == 1 else self._row(work, 0)

    def run_in_parts(self, work: UNetWork) -> Answer:
        answers = [self.run([self._row(work, row)])[0] for row in range(len(work.contexts))]
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

    @staticmethod
    def _row(work: UNetWork, row: int) -> UNetWork:
        image = work.image_of_row[row]
        return replace(
            work,
            latents=work.latents[image : image + 1],
            contexts=work.contexts[row : row + 1],
            image_of_row=(0,),
            perturbed=(0,) if row in work.perturbed else (),
            deep=None if work.deep is None else work.deep[row : row + 1],
        )

    def _given(self, works: Sequence[UNetWork]) -> Given:
        """What a forward of these works is given; the same object as long as rows and prompts stay the same."""
        contexts = [context for work in works for context in work.contexts]
        images, first = list[int](), 0
        for work in works:
            images += [first + image for image in work.image_of_row]
            first += len(work.latents)
        key = works[0].network, tuple(context.key for context in contexts), tuple(images)
        given = self._stacked.get(key)
        if given is None:
            reads = self._reads(works[0].network, contexts)
            stacked = {
                name: (torch.cat([read[name][0] for read in reads]), torch.cat([read[name][1] for read in reads]))
                for name in reads[0]
            }
            rows = None if images == list(range(first)) else upload(torch.tensor(images), self._pool.device)
            given = Given(stacked, rows)
            self._stacked.put(key, given)
        return given

    def _reads(self, network: str, contexts: Sequence[Context]) -> list[Read]:
        """Keys and values of each context, computed for those that are not kept, in one pass."""
        kept = {context.key: self._read.get((network, context.key)) for context in contexts}
        reads = {key: read for key, read in kept.items() if read is not None}
        unknown = {context.key: context for context in contexts if context.key not in reads}
        if unknown:
            states = torch.cat([context.states for context in unknown.values()])
            together = self._pool.unet(network).read(states)
            for index, key in enumerate(unknown):
                # Copies, because a view would keep the whole batch alive.
                reads[key] = {
                    name: (keys[index : index + 1].clone(), values[index : index + 1].clone())
                    for name, (keys, values) in together.items()
                }
                self._read.put((network, key), reads[key])
        return [reads[context.key] for context in contexts]


def _size(keys_values: Mapping[str, KeysValues]) -> int:
    return sum(each.nbytes for pair in keys_values.values() for each in pair)
