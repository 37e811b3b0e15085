"""Checkpoint files: where each tensor lies in its file, and reading tensors one at a time."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.keys import show

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}  # as safetensors spells them

SAFETENSORS = "safetensors"
"""The format of the files whose tensors may be mapped into memory; see `TensorFile`."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file. `start` is a byte offset; strides are in elements and may be 0."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stride: tuple[int, ...]

    @property
    def span_bytes(self) -> int:
        """Bytes from the first element to the end of the last; 0 without elements."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """An open checkpoint file of any format, a context manager. Tensors are read one at a time."""

    path: Path
    format: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    file: BufferedReader

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self.tensors.items()}

    def read(self, name: str, scratch: Tensor | None = None) -> Tensor:
        """The tensor, contiguous, in new memory, or in `scratch` so that the next read may overwrite it.

        `scratch` is uint8 (n,), n at least the tensor's `span_bytes`. ModelError if the file ends too early.
        """
        stored = self.tensors[name]
        if scratch is None:
            scratch = torch.empty(stored.span_bytes, dtype=torch.uint8)
        data = scratch[: stored.span_bytes]
        fill(self.file, stored.start, memoryview(data.numpy().data), self.path, name)
        return data.view(stored.dtype).as_strided(stored.shape, stored.stride).contiguous()

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fill(file: FileIO | BufferedReader, start: int, into: memoryview, path: Path, name: str) -> None:
    """Fill `into` with the file's bytes from `start` on. ModelError if the file ends inside the tensor `name`."""
    file.seek(start)
    while into:
        count = file.readinto(into)
        if not count:
            raise ModelError(f"{path} ends inside the tensor {show(name)}: it is incomplete")
        into = into[count:]


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides, in elements, of a row-major tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def first_bytes(path: Path, count: int = 64) -> bytes:
    """The first bytes of a file. ModelError if it does not exist, is empty or cannot be read."""
    if path.is_dir():
        raise ModelError(f"{path} is a directory, not a checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(count)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise ModelError(f"{path} is empty: copy or download it again")
    return head


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins with `head` is PyTorch's: a zip archive or a bare pickle."""
    return head.startswith(b"PK") or (head[:1] == b"\x80" and head[1:2] in b"\x01\x02\x03\x04\x05")


def not_a_model(head: bytes) -> str | None:
    """What a failed download left instead of a model, as the end of a sentence; None if nothing is recognized."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page: the server sent a page instead of the file (a licence to accept, a login, an error)"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    return None


def converted_name(path: Path) -> Path:
    """Where a conversion of `path` goes by default: beside it, never over it."""
    if path.is_dir():
        folder = path.resolve()
        return folder.with_name(f"{folder.name}.safetensors")
    if path.suffix.casefold() == ".safetensors":
        return path.with_name(f"{path.stem}-converted.safetensors")
    return path.with_suffix(".safetensors")


def open_safetensors(path: Path) -> TensorFile:
    """A safetensors file whose header is valid. ModelError otherwise, which says what the file is if it can."""
    head = first_bytes(path)
    if is_pickle(head):
        better = converted_name(path)
        command = shlex.join(["python", "-m", "builder", "convert", str(path), str(better)])
        raise ModelError(
            f"{path} is a PyTorch checkpoint (pickle), not safetensors: run `{command}` once, then use {better.name}"
        )
    if (what := not_a_model(head)) is not None:
        raise ModelError(f"{path} {what}")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ModelError(f"{path}: the safetensors library needs a path in UTF-8: rename the file") from None
    try:
        with safe_open(path, framework="pt") as checked:
            metadata = dict(checked.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is not a complete safetensors file ({error}): copy or download it again, or convert its source "
            f"again with `python -m builder convert SRC {shlex.quote(str(path))} --force`"
        ) from error
    file = path.open("rb")
    try:
        length = int.from_bytes(file.read(8), "little")
        tensors = _tensors(path, json.loads(file.read(length)), 8 + length)
    except BaseException:  # including KeyboardInterrupt: the caller has no file to close
        file.close()
        raise
    return TensorFile(path, SAFETENSORS, tensors, metadata, file)


def _tensors(path: Path, header: dict[str, dict[str, object]], data: int) -> dict[str, StoredTensor]:
    """The tensors of a header that safetensors has validated. Its offsets count from byte `data`."""
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = _DTYPES.get(str(entry["dtype"]))
        if dtype is None:
            raise ModelError(f"{path}: {show(name)} has the dtype {entry['dtype']}, which is not supported")
        shape, offsets = entry["shape"], entry["data_offsets"]
        assert isinstance(shape, list)
        assert isinstance(offsets, list)
        size = tuple(int(length) for length in shape)
        tensors[name] = StoredTensor(dtype, size, data + int(offsets[0]), contiguous_stride(size))
    return tensors
