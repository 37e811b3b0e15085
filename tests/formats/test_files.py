"""Opening safetensors files: valid ones are read, all others are named."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.files import open_safetensors
from tests.support.checkpoints import same_tensor

Save = Callable[..., Path]
State = dict[str, Tensor]
CPU = torch.device("cpu")

FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "a zip": (b"PK\x03\x04" + b"\x00" * 100, r"PyTorch checkpoint.*python -m builder convert \S+ \S+-converted"),
    "a pickle": (b"\x80\x02}." + b"\x00" * 100, r"PyTorch checkpoint.*python -m builder convert \S+ \S+-converted"),
    "a page": (b"\n<!doctype html><title>", "is a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "text": (b"hello, this is no model at all", "not a complete safetensors"),
    "three bytes": (b"abc", "not a complete safetensors"),
    "an endless header": ((2**60).to_bytes(8, "little") + b"{}", "not a complete safetensors"),
    "a header of nonsense": ((4).to_bytes(8, "little") + b"{{{{", "not a complete safetensors"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES.keys())
def test_errors_for_other_kinds_of_files_say_what_to_do(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        open_safetensors(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match="is a directory"):
        open_safetensors(tmp_path)


def test_every_truncation_is_an_error(state: State, saved: Save) -> None:
    path = saved(state)
    size = path.stat().st_size
    for length in (size - 1, size // 2, 9_000, 100, 8, 1):
        os.truncate(path, length)
        with pytest.raises(ModelError, match="not a complete safetensors"):
            open_safetensors(path)


def test_hostile_headers_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for entry in (
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [2**40, 2**40 + 4]},
        {"dtype": "XYZ", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32"},
        [1],
    ):
        header = json.dumps({"a": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + b"\x00" * 4)
        with pytest.raises(ModelError, match="not a complete safetensors"):
            open_safetensors(path)


def test_a_dtype_that_torch_does_not_have_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(ModelError, match="a has the dtype F6_E2M3, which is not supported"):
        open_safetensors(path)


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
]


def test_every_dtype_that_safetensors_writes_is_read(saved: Save) -> None:
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    with open_safetensors(saved(tensors)) as file:
        assert all(same_tensor(file.read(name), tensor) for name, tensor in tensors.items())
