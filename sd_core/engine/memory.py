"""What a forward needs of the device's memory, and what is free: so that batches are made that fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from sd_core.device import DTYPES
from sd_core.layout.choose import bytes_to_pack
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Decode, Encode, UNetRows, Work

LATENT_PIXELS = 64
"""Pixels that one latent stands for: v1's autoencoder halves each side three times."""

UNET_NUMBERS = 36
"""Numbers that the UNet holds at its peak for a latent of a row, over its first width: `bench.memory` measures them."""

VAE_NUMBERS = 8
"""The same of the autoencoder for a pixel, over the larger of its two first widths."""

USABLE = 0.8
"""Of the free memory: the rest is for the libraries' workspaces, prompts, pictures on their way out, and neighbours."""

SURE = 2**26
"""Bytes that are had without asking: the system's answer takes a moment itself."""

_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
"""In the words of torch's CPU allocator, of CUDA, and of cuBLAS and cuDNN."""

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Activations grow with rows times pixels: so many bytes a pixel for each kind of work.

    `networks` are those whose weights take memory as they are first used.
    """

    device: torch.device
    bytes_a_pixel: Mapping[type[Work], float]
    networks: tuple[nn.Module, ...] = ()

    @classmethod
    def of(cls, model: StableDiffusion) -> "Memory":
        networks = model.networks.text_encoder, model.networks.unet, model.networks.vae
        unet, vae = model.networks.unet.config, model.networks.vae.config
        size = DTYPES[model.info.dtype].itemsize
        pixel = VAE_NUMBERS * max(vae.channels[:2]) * size
        row_pixel = UNET_NUMBERS * unet.channels[0] * size / LATENT_PIXELS
        lazy = networks if model.device.type == "cpu" else ()
        return cls(model.device, {UNetRows: row_pixel, Encode: pixel, Decode: pixel}, lazy)

    def room(self) -> dict[type[Work], int]:
        """Pixels, times rows, that a forward of each kind may have now; empty where nobody can say."""
        free = self._free()
        if free is None:
            return {}
        return {kind: int(USABLE * free / each) for kind, each in self.bytes_a_pixel.items()}

    def require(self, works: Sequence[Work]) -> None:
        """Raises MemoryError where a CPU lacks the memory for this forward: the system would end the process instead.

        A GPU's allocator raises by itself, of what it really lacks.
        """
        if self.device.type != "cpu":
            return
        needed = self.bytes_a_pixel[type(works[0])] * sum(pixels_of(work) for work in works)
        if needed > SURE and (free := self._free()) is not None and needed > free:
            raise MemoryError(f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB free")

    def _free(self) -> int | None:
        """Bytes that forwards may take: not those for weights that are still to be packed."""
        free = free_bytes(self.device)
        return None if free is None else max(0, free - sum(map(bytes_to_pack, self.networks)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch's allocators, Python's or one of a GPU's libraries found no memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in _NO_MEMORY)


def pixels_of(work: Work) -> int:
    """Pixels of a piece of work, times its rows."""
    match work:
        case UNetRows(latents=latents, context=context):
            return LATENT_PIXELS * len(context) * latents.shape[2:].numel()
        case Encode(noise=latents) | Decode(latents=latents):
            return LATENT_PIXELS * latents.shape[2:].numel()


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where that is not known (MPS)."""
    match device.type:
        case "cuda":
            free: int = torch.cuda.mem_get_info(device)[0]
            # What torch's allocator keeps for itself and has not given out is free to it.
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        case "cpu":
            return int(min(psutil.virtual_memory().available, _container_bytes()))
    return None


def _container_bytes() -> float:
    """What the container's limit (cgroup v2) leaves; infinite where there is none."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    # Cached files count as used, and make room when asked. Not every kernel tells of them.
    return float("inf") if limit == "max" else int(limit) - int(used) + int(statistics.get("inactive_file", 0))
