"""What the tests of checkpoint files share: reading them whole, and pickle instructions written by hand."""

import struct
from pathlib import Path

import pytest
from torch import Tensor

from sd_core.formats.files import TensorFile

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def read_all(file: TensorFile) -> dict[str, Tensor]:
    return {name: file.read(name) for name in file.tensors}


def marker_call(marker: Path) -> bytes:
    """Instructions that would run `open(marker, "w")`."""
    return b"cbuiltins\nopen\n(S'" + str(marker).encode() + b"'\nS'w'\ntR"


def storage(key: bytes = b"0", count: bytes = b"K\x04", kind: bytes = b"FloatStorage") -> bytes:
    """Instructions that refer to a storage; `count` is itself an instruction."""
    text = b"".join(b"X" + struct.pack("<I", len(part)) + part for part in (b"storage",))
    return (
        b"(" + text + b"ctorch\n" + kind + b"\n" + b"X" + struct.pack("<I", len(key)) + key
        + b"X\x03\x00\x00\x00cpu" + count + b"tQ"
    )  # fmt: skip


def rebuilt(shape: bytes, stride: bytes, offset: bytes = b"K\x00", of: bytes = storage()) -> bytes:
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + of + offset + shape + stride + b"\x89}tR."
