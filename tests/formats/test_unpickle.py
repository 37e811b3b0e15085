"""Checkpoint files that PyTorch writes: every tensor in them is read as it was saved."""

import collections
import io
import pickle
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sd_core.formats import machine
from sd_core.formats.unpickle import read_checkpoint
from tests.support.checkpoints import FORMATS, read_all, same_tensor

ALL_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint64, torch.uint32, torch.uint16, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
]


def lightning_callback(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that is pickled under the name that Lightning 1.x checkpoints contain."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name, "__qualname__": "ModelCheckpoint"})
    module = types.ModuleType(name)
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return callback


@FORMATS
def test_tensors_of_every_dtype_are_read(ckpt: Callable[..., Path], zipped: bool) -> None:
    state = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in ALL_DTYPES}
    with read_checkpoint(ckpt(state, zipped=zipped)) as file:
        found = read_all(file)
    assert found.keys() == state.keys()
    assert all(same_tensor(found[name], tensor) for name, tensor in state.items())


@FORMATS
def test_views_scalars_and_shared_storages_are_read(ckpt: Callable[..., Path], zipped: bool) -> None:
    base = torch.randn(8, 6)
    state = {
        "whole": base,
        "transposed": base.T,
        "slice": base[2:5, 1:4],
        "strided": base[::3, ::2],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "other": torch.arange(4),
        "expanded": torch.tensor([1.5]).expand(5),
        "repeated rows": torch.arange(3).expand(4, 3),
        "slice of bytes": torch.arange(6).to(torch.uint16)[2:],
        "overlapping windows": torch.arange(6).unfold(0, 3, 1),
    }
    with read_checkpoint(ckpt(state, zipped=zipped)) as file:
        found = read_all(file)
        assert file.tensors["transposed"].shape == (6, 8)
    for name, tensor in state.items():
        assert same_tensor(found[name], tensor), name
        assert found[name].is_contiguous()


@FORMATS
def test_a_lightning_checkpoint_is_read_with_all_its_extras(
    ckpt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    callback = lightning_callback(monkeypatch)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = model.state_dict()  # an OrderedDict with a _metadata attribute
    whole = {
        "epoch": 3,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {callback: {"best_model_score": np.float64(0.5), "best": torch.tensor(1.0), "p": None}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"base_lrs": [1e-4], "last": np.int64(3), "flags": (True, False), "b": b"\xff\x00"}],
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "bytes": bytearray(b"x"),
    }
    with read_checkpoint(ckpt(whole, zipped=zipped)) as file:
        found = read_all(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_names_of_python_2_and_of_older_numpy_are_known(tmp_path: Path) -> None:
    """Protocol 0's text instructions, an OrderedDict made from lists of pairs, numpy.core's scalar."""
    value = pickle.dumps(collections.OrderedDict, 0)[:-1] + b"((lp1\n(lp2\nS'a'\naI1\naatR."
    assert machine.Machine().load(io.BytesIO(value)) == {"a": 1}
    for name in (b"numpy.core.multiarray\nscalar\n", b"numpy._core.multiarray\nscalar\n"):
        assert machine.Machine().load(io.BytesIO(b"c" + name + b"(I1\ntR.")) is not None


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_in_every_protocol(protocol: int) -> None:
    value = {
        "a": [1, 2.5, None, True],
        "b": (1, (2, 3)),
        3: "ü" * 300,
        "c": 2**70,
        "d": [],
        "e": b"a" if protocol > 2 else 0,
    }
    assert machine.Machine().load(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_names_of_nested_dictionaries_are_joined_without_a_state_dict(ckpt: Callable[..., Path]) -> None:
    embedding = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": torch.randn(1, 768)}}
    with read_checkpoint(ckpt(embedding)) as file:
        assert set(file.tensors) == {"string_to_token.*", "string_to_param.*"}


@FORMATS
def test_tensors_are_read_lazily(ckpt: Callable[..., Path], zipped: bool) -> None:
    path = ckpt({"a": torch.zeros(100_000)}, zipped=zipped)
    with read_checkpoint(path) as file:
        stored = file.tensors["a"]
        data = bytearray(path.read_bytes())
        end = stored.start + 400_000
        data[end - 4 : end] = struct.pack("<f", 2.0)
        path.write_bytes(data)
        assert file.read("a")[-2:].tolist() == [0.0, 2.0]
