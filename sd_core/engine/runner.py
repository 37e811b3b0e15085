"""Work of many pictures -> one forward of the networks."""

import gc
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_core.device import upload
from sd_core.engine.graphs import Bucket, GraphedUNet, Step, for_device
from sd_core.engine.memory import Memory, is_out_of_memory
from sd_core.models.unet import Contexts
from sd_core.models.vae import TILE
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Decode, Encode, UNetRows, Work

REMEMBERED = 2
"""Compositions of a batch whose prompts stay read: most steps run with those of the step before."""


@dataclass(frozen=True)
class Tiled:
    """An answer of the VAE that memory allowed only tile by tile."""

    tensor: Tensor


Answer = Tensor | Tiled | Exception


class Runner:
    """Stacks work of one kind and shape, as the scheduler chose it, into one forward."""

    def __init__(self, model: StableDiffusion, memory: Memory, packages: Mapping[Bucket, Step] | None = None) -> None:
        self._vae, self._device, self._memory = model.networks.vae, model.device, memory
        self._unet = for_device(model.networks.unet, model.device, packages or {})
        self._read: OrderedDict[tuple[int, ...], tuple[list[Tensor], Contexts]] = OrderedDict()

    def warm_up(self) -> None:
        """Before the first job: the graphs of compiled forwards, as many as memory holds."""
        if not isinstance(self._unet, GraphedUNet):
            return
        try:
            self._unet.warm_up()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._free()

    def run(self, works: Sequence[Work]) -> tuple[list[Answer], bool]:
        """The answer to each piece of work, in its order, and whether memory held them all together.

        Where a forward fails its halves are tried, so that what cannot run fails alone, with the error that it met.
        Raises what a GPU says that will answer nothing any more.
        """
        try:
            return list(self._forward(works)), True
        except Exception as error:  # noqa: BLE001 - an answer too: whose it is, the halves show
            failure = error.with_traceback(None)  # which would keep the failed forward's tensors
        self.require_device()
        held = not is_out_of_memory(failure)
        if not held:
            self._free()
        if len(works) == 1:
            return [self._in_parts(works[0], failure)], held
        middle = len(works) // 2
        return self.run(works[:middle])[0] + self.run(works[middle:])[0], held

    def require_device(self) -> None:
        """After a failure: raises where the GPU is lost. Most of CUDA's errors are met again at every later call."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _forward(self, works: Sequence[Work]) -> Sequence[Tensor]:
        match works[0]:
            case UNetRows():
                return self._denoise([work for work in works if isinstance(work, UNetRows)])
            case Encode(pixels=pixels):
                self._memory.require(works[:1])
                noise = torch.cat([work.noise for work in works if isinstance(work, Encode)])
                return _parts(self._vae.encode(pixels, noise), 1)
            case Decode():
                self._memory.require(works)
                latents = torch.cat([work.latents for work in works if isinstance(work, Decode)])
                return _parts(self._vae.decode(latents), 1)

    def _denoise(self, works: Sequence[UNetRows]) -> Sequence[Tensor]:
        self._memory.require(works)
        latents = torch.cat([work.latents for work in works])
        timesteps = upload(torch.tensor([work.timestep for work in works], dtype=torch.float32), self._device)
        eps: Tensor = self._unet(latents, timesteps, self._contexts([work.context for work in works]))
        return _parts(eps, [len(work.context) for work in works])

    def _contexts(self, contexts: list[Tensor]) -> Contexts:
        key = tuple(id(context) for context in contexts)
        if key not in self._read:
            rows = [picture for picture, context in enumerate(contexts) for _ in range(len(context))]
            spread = None if len(rows) == len(contexts) else upload(torch.tensor(rows), self._device)
            # The contexts are kept with what was read of them: a freed one's id could come again.
            self._read[key] = contexts, self._unet.read(torch.cat(contexts), spread)
            while len(self._read) > REMEMBERED:
                self._read.popitem(last=False)
        self._read.move_to_end(key)
        return self._read[key][1]

    def _in_parts(self, work: Work, failure: Exception) -> Answer:
        """One picture's rows one after another, or its tiles, where memory does not hold them together."""
        if not is_out_of_memory(failure):
            return failure
        try:
            match work:
                case UNetRows(context=context) if len(context) > 1:
                    rows = [UNetRows(work.latents, work.timestep, row) for row in context.split(1)]
                    return torch.cat([self._denoise([row])[0] for row in rows])
                case Encode(noise=noise) if max(noise.shape[2:]) > TILE:
                    self._memory.require([Encode(work.pixels, noise[..., :TILE, :TILE])])
                    return Tiled(self._vae.encode_tiled(work.pixels, noise))
                case Decode(latents=latents) if max(latents.shape[2:]) > TILE:
                    self._memory.require([Decode(latents[..., :TILE, :TILE])])
                    return Tiled(self._vae.decode_tiled(latents))
                case _:
                    return failure
        except Exception as error:  # noqa: BLE001 - as above
            return error.with_traceback(None)

    def _free(self) -> None:
        self._read.clear()
        if isinstance(self._unet, GraphedUNet):
            self._unet.clear()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _parts(batch: Tensor, sizes: int | list[int]) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = batch.split(sizes)
    return parts
