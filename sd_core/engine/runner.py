"""Work of many pictures -> few forwards of the networks."""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from sd_core.contracts import Decode, Encode, Picture, UNetRows, Work
from sd_core.pipeline.model import StableDiffusion


class Runner:
    """Stacks work of one kind and shape into forwards of at most `max_batch` pictures."""

    def __init__(self, model: StableDiffusion, max_batch: int) -> None:
        self._networks, self._device, self._max_batch = model.networks, model.device, max_batch

    def run(self, works: Sequence[Work]) -> tuple[list[Tensor], dict[str, float]]:
        """The answer to each piece of work, in its order, and the seconds that each kind of work took."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index, work in enumerate(works):
            groups[_batch_key(work)].append(index)
        answers: dict[int, Tensor] = {}
        seconds: dict[str, float] = defaultdict(float)
        for indices in groups.values():
            for start in range(0, len(indices), self._max_batch):
                chunk = indices[start : start + self._max_batch]
                started = time.perf_counter()
                kind, results = self._forward([works[index] for index in chunk])
                answers.update(zip(chunk, results, strict=True))
                seconds[kind] += time.perf_counter() - started
        return [answers[index] for index in range(len(works))], seconds

    def _forward(self, works: list[Work]) -> tuple[str, Sequence[Tensor]]:
        match works[0]:
            case UNetRows():
                return "denoise", self._denoise([work for work in works if isinstance(work, UNetRows)])
            case Encode():
                encodes = [work for work in works if isinstance(work, Encode)]
                pixels = torch.cat([work.pixels for work in encodes])
                noise = torch.cat([work.noise for work in encodes])
                return "encode", self._networks.vae.encode(pixels, noise).split(1)
            case Decode():
                latents = torch.cat([work.latents for work in works if isinstance(work, Decode)])
                return "decode", self._networks.vae.decode(latents).split(1)

    def _denoise(self, works: list[UNetRows]) -> Sequence[Tensor]:
        rows = [len(work.context) for work in works]
        latents = torch.cat([work.latents.expand(count, -1, -1, -1) for work, count in zip(works, rows, strict=True)])
        timesteps = [work.timestep for work, count in zip(works, rows, strict=True) for _ in range(count)]
        context = torch.cat([work.context for work in works])
        times = torch.tensor(timesteps, dtype=torch.float32, device=self._device)
        answers: Sequence[Tensor] = self._networks.unet(latents, times, context).split(rows)
        return answers


def _batch_key(work: Work) -> Hashable:
    """Work with equal keys can share a forward."""
    match work:
        case UNetRows(latents=latents, context=context):
            return UNetRows, latents.shape, context.shape[1:]
        case Encode(pixels=pixels):
            return Encode, pixels.shape
        case Decode(latents=latents):
            return Decode, latents.shape


def drive(
    pictures: Sequence[Picture], runner: Runner, before_tick: Callable[[], None] = lambda: None
) -> tuple[list[Tensor], dict[str, float]]:
    """Draws pictures together: one batched forward answers what all of them ask, until each has ended.

    Returns each picture's pixels (1, 3, H, W) and the seconds by kind of work. `before_tick` runs before every
    forward; what it raises ends them all.
    """
    finished: dict[int, Tensor] = {}
    totals: dict[str, float] = defaultdict(float)
    try:
        asked = {index: next(picture) for index, picture in enumerate(pictures)}
        while asked:
            before_tick()
            answers, seconds = runner.run(list(asked.values()))
            for kind, spent in seconds.items():
                totals[kind] += spent
            for index, answer in zip(list(asked), answers, strict=True):
                try:
                    asked[index] = pictures[index].send(answer)
                except StopIteration as stop:
                    finished[index] = stop.value
                    del asked[index]
    finally:
        for picture in pictures:
            picture.close()
    return [finished[index] for index in range(len(pictures))], totals
