"""Reads a file's tensors to a GPU: several threads, each with pinned buffers that the device copies from."""

import queue
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor

from sd_core.formats.files import StoredTensor, fill

# A network volume serves several requests at once, and one thread copies from the page cache slower than the bus can.
THREADS = 4

# Bytes of one read and one copy.
PIECE = 2**25

# A tensor's name, the byte offset of one piece of it in the file, and the bytes on the device that the piece fills.
_Piece = tuple[str, int, Tensor]


def read_parallel(path: Path, stored: Mapping[str, StoredTensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors, which must be contiguous in the file, on `device` in their stored dtypes.

    ModelError if the file ends too early.
    """
    tensors = {name: torch.empty(entry.shape, dtype=entry.dtype, device=device) for name, entry in stored.items()}
    pieces: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
    for name, entry in sorted(stored.items(), key=lambda item: item[1].start):
        data = tensors[name].view(-1).view(torch.uint8)
        for start in range(0, len(data), PIECE):
            pieces.put((name, entry.start + start, data[start : start + PIECE]))
    with ThreadPoolExecutor(THREADS) as pool:
        for carried in [pool.submit(_carry, path, pieces, device) for _ in range(THREADS)]:
            carried.result()
    return tensors


def _carry(path: Path, pieces: "queue.SimpleQueue[_Piece]", device: torch.device) -> None:
    """Fills one buffer while the device copies the other, until no pieces are left."""
    with path.open("rb", buffering=0) as file:
        buffers = cycle([_Buffer(device), _Buffer(device)])
        for name, start, target in _taken(pieces):
            buffer = next(buffers)
            fill(file, start, buffer.free(len(target)), path, name)
            buffer.copy_to(target)
        for _ in range(2):
            next(buffers).free(0)


def _taken(pieces: "queue.SimpleQueue[_Piece]") -> Iterator[_Piece]:
    while True:
        try:
            yield pieces.get_nowait()
        except queue.Empty:
            return


class _Buffer:
    """Pinned memory that a read fills and the device copies from, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._bytes = torch.empty(PIECE, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None

    def free(self, size: int) -> memoryview:
        """Waits for the last copy and returns the first `size` bytes for writing."""
        if self._stream is not None:
            self._stream.synchronize()
        return memoryview(self._bytes.numpy().data)[:size]

    def copy_to(self, target: Tensor) -> None:
        with torch.cuda.stream(self._stream):  # no effect without a stream
            target.copy_(self._bytes[: len(target)], non_blocking=True)
