"""How much memory is free, and which errors mean that there was not enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from sd_core.layout.choose import bytes_to_pack

# Part of the free memory that forwards may take; the rest is for libraries' workspaces, prompts and images.
USABLE = 0.8

# Skip the check below this many bytes: querying free memory costs more than it saves.
MIN_CHECKED = 2**26

# Texts of the errors of torch's CPU allocator, of CUDA, and of cuBLAS and cuDNN.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """The memory of one device. `networks` are those whose weights take memory at their first use, as of now."""

    device: torch.device
    networks: Callable[[], Sequence[nn.Module]] = tuple

    def usable(self) -> int | None:
        """Bytes that one forward may take now; None if unknown."""
        free = self._free()
        return None if free is None else int(USABLE * free)

    def require(self, needed: int) -> None:
        """Raise MemoryError if fewer bytes are free on a CPU, where the system would kill the process instead.

        A GPU's allocator raises an error itself.
        """
        if self.device.type != "cpu" or needed <= MIN_CHECKED:
            return
        if (free := self._free()) is not None and needed > free:
            raise MemoryError(f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB free")

    def _free(self) -> int | None:
        """Free bytes, less those that weights will take when they are packed."""
        free = free_bytes(self.device)
        return None if free is None else max(0, free - sum(map(bytes_to_pack, self.networks())))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch's allocators, Python's or one of a GPU's libraries ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _NO_MEMORY)


def free_bytes(device: torch.device) -> int | None:
    """Free bytes of a device; None if unknown (MPS)."""
    match device.type:
        case "cuda":
            free: int = torch.cuda.mem_get_info(device)[0]
            # Memory that torch's allocator has reserved and not allocated is free too.
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        case "cpu":
            return int(min(psutil.virtual_memory().available, _container_bytes()))
    return None


def _container_bytes() -> float:
    """Free bytes within the container's limit (cgroup v2); infinite if there is no limit."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    # Cached files count as used but can be evicted. Not every kernel reports them.
    return float("inf") if limit == "max" else int(limit) - int(used) + int(statistics.get("inactive_file", 0))
