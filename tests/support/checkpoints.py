"""For tests of checkpoint files: reading whole files, and pickle instructions written by hand."""

import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd_core.formats.files import TensorFile

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def read_all(file: TensorFile) -> dict[str, Tensor]:
    return {name: file.read(name) for name in file.tensors}


def same_tensor(found: Tensor, expected: Tensor) -> bool:
    """Whether dtype, shape and bytes are the same. torch.equal does not support every dtype."""
    pair = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (found, expected)]
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and torch.equal(*pair)


def marker_call(marker: Path) -> bytes:
    """Instructions that would run `open(marker, "w")`."""
    return b"cbuiltins\nopen\n(S'" + str(marker).encode() + b"'\nS'w'\ntR"


def text(value: bytes) -> bytes:
    """The instruction that pushes a string."""
    return b"X" + struct.pack("<I", len(value)) + value


def storage(key: bytes = b"0", count: bytes = b"K\x04", kind: bytes = b"FloatStorage") -> bytes:
    """Instructions that refer to a storage. `count` is itself an instruction."""
    return b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + count + b"tQ"


def rebuilt(shape: bytes, stride: bytes, offset: bytes = b"K\x00", of: bytes = storage()) -> bytes:
    """A pickle of one tensor; all arguments are instructions."""
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + of + offset + shape + stride + b"\x89}tR."
