"""How much memory is free, and which errors mean that there was too little."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from sd_core.layout.choose import bytes_to_pack

USABLE = 0.8
"""Part of the free memory that forwards may take: the rest is for the libraries' workspaces, prompts and images."""

MIN_CHECKED = 2**26
"""Skip the check below this many bytes: querying free memory costs more than it saves."""

# In the words of torch's CPU allocator, of CUDA, and of cuBLAS and cuDNN.
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """The memory of one device. `networks` are those whose weights take memory when they are first used."""

    device: torch.device
    networks: Sequence[nn.Module] = ()

    def usable(self) -> int | None:
        """Bytes that one forward may take now; None if that is not known."""
        free = self._free()
        return None if free is None else int(USABLE * free)

    def require(self, needed: int) -> None:
        """Raise MemoryError if a CPU lacks this many bytes: the system would end the process instead.

        A GPU's allocator raises by itself, and only if it really lacks memory.
        """
        if self.device.type != "cpu" or needed <= MIN_CHECKED:
            return
        if (free := self._free()) is not None and needed > free:
            raise MemoryError(f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB free")

    def _free(self) -> int | None:
        """Free bytes, without those for weights that are still to be packed."""
        free = free_bytes(self.device)
        return None if free is None else max(0, free - sum(map(bytes_to_pack, self.networks)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch's allocators, Python's or one of a GPU's libraries ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in _NO_MEMORY)


def free_bytes(device: torch.device) -> int | None:
    """Free bytes of a device; None if that is not known (MPS)."""
    match device.type:
        case "cuda":
            free: int = torch.cuda.mem_get_info(device)[0]
            # What torch's allocator has reserved and not handed out is free as well.
            return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        case "cpu":
            return int(min(psutil.virtual_memory().available, _container_bytes()))
    return None


def _container_bytes() -> float:
    """Bytes that the container's limit (cgroup v2) leaves; infinite if there is none."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    # Cached files count as used but can be evicted. Not every kernel reports them.
    return float("inf") if limit == "max" else int(limit) - int(used) + int(statistics.get("inactive_file", 0))
