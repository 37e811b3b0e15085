"""Checkpoint files of PyTorch: what is read from real ones, and what is refused in hostile ones."""

import collections
import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd_core.contracts import ModelError
from sd_core.weights import archive, machine, unpickle
from sd_core.weights.files import TensorFile
from sd_core.weights.unpickle import read_checkpoint

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
ALL_DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.fixture
def ckpt(tmp_path: Path) -> Callable[..., Path]:
    """Writes any object as torch.save does and returns the file's path."""

    def save(value: object, *, zipped: bool = True) -> Path:
        path = tmp_path / "model.ckpt"
        torch.save(value, path, _use_new_zipfile_serialization=zipped)
        return path

    return save


def read_all(file: TensorFile) -> dict[str, Tensor]:
    return {name: file.read(name) for name in file.tensors}


def lightning_callback(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that pickles by the name that Lightning 1.x checkpoints carry."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name, "__qualname__": "ModelCheckpoint"})
    module = types.ModuleType(name)
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    return callback


# What is read


@FORMATS
def test_every_dtype_comes_back_as_it_was(ckpt: Callable[..., Path], zipped: bool) -> None:
    state = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in ALL_DTYPES}
    with read_checkpoint(ckpt(state, zipped=zipped)) as file:
        found = read_all(file)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@FORMATS
def test_views_scalars_and_shared_storages(ckpt: Callable[..., Path], zipped: bool) -> None:
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
    }
    with read_checkpoint(ckpt(state, zipped=zipped)) as file:
        found = read_all(file)
        assert file.tensors["transposed"].shape == (6, 8)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor.detach()), name
        assert found[name].is_contiguous()


@FORMATS
def test_a_lightning_checkpoint_with_all_its_extras(
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
    if zipped:
        del whole["bytes"]  # what protocol 2 names for it (builtins.bytearray) is on no list
    else:
        whole.pop("bytes")
    with read_checkpoint(ckpt(whole, zipped=zipped)) as file:
        found = read_all(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_the_names_of_python_2_and_of_older_numpy(tmp_path: Path) -> None:
    """Protocol 0's text instructions, an OrderedDict made from lists of pairs, numpy.core's scalar."""
    value = pickle.dumps(collections.OrderedDict, 0)[:-1] + b"((lp1\n(lp2\nS'a'\naI1\naatR."
    assert machine.Machine().load(io.BytesIO(value)) == {"a": 1}
    for name in (b"numpy.core.multiarray\nscalar\n", b"numpy._core.multiarray\nscalar\n"):
        assert machine.Machine().load(io.BytesIO(b"c" + name + b"(I1\ntR.")) is not None


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol: int) -> None:
    value = {
        "a": [1, 2.5, None, True],
        "b": (1, (2, 3)),
        3: "ü" * 300,
        "c": 2**70,
        "d": [],
        "e": b"" if protocol > 2 else 0,
    }
    assert machine.Machine().load(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_nested_dictionaries_are_joined_where_nothing_is_the_state_dict(ckpt: Callable[..., Path]) -> None:
    embedding = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": torch.randn(1, 768)}}
    with read_checkpoint(ckpt(embedding)) as file:
        assert set(file.tensors) == {"string_to_token.*", "string_to_param.*"}


@FORMATS
def test_tensors_are_read_only_when_asked_for(ckpt: Callable[..., Path], zipped: bool) -> None:
    path = ckpt({"a": torch.zeros(100_000)}, zipped=zipped)
    with read_checkpoint(path) as file:
        stored = file.tensors["a"]
        data = bytearray(path.read_bytes())
        end = stored.start + 400_000
        data[end - 4 : end] = struct.pack("<f", 2.0)
        path.write_bytes(data)
        assert file.read("a")[-2:].tolist() == [0.0, 2.0]


# What is refused


class Evil:
    """Pickles as a call of anything."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def marker_call(marker: Path) -> bytes:
    """Instructions that would run `open(marker, "w")`."""
    return b"cbuiltins\nopen\n(S'" + str(marker).encode() + b"'\nS'w'\ntR"


@FORMATS
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (open, "io.open"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (torch.load, "torch.serialization.load"),
        (torch.storage._load_from_bytes, "torch.storage._load_from_bytes"),
    ],
)
def test_a_name_that_is_not_on_the_list_is_refused_by_that_name(
    ckpt: Callable[..., Path], tmp_path: Path, zipped: bool, function: Callable[..., object], name: str
) -> None:
    marker = tmp_path / "marker"
    path = ckpt({"state_dict": {"a": torch.zeros(1)}, "x": Evil(function, str(marker), "w")}, zipped=zipped)
    module, _, attribute = name.rpartition(".")
    with pytest.raises(
        ModelError, match=rf"names (_?{module}|__builtin__)\.{attribute}, .*nothing in the file was run"
    ):
        read_checkpoint(path)
    assert not marker.exists()


HOSTILE_NAMES: dict[str, tuple[bytes, str]] = {
    "GLOBAL": (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"os\.system"),
    "STACK_GLOBAL of no strings": (b"\x80\x04K\x01K\x02\x93.", "refused"),
    "INST": (b"(S'true'\nios\nsystem\n.", r"os\.system"),
    "a dotted attribute": (b"\x80\x04\x8c\x05torch\x8c\x15FloatStorage.__init__\x93.", r"FloatStorage\.__init__"),
    "an allowed module": (b"ctorch._utils\n_import_dotted_name\n.", "_import_dotted_name"),
    "an allowed name elsewhere": (b"cevil\nOrderedDict\n.", r"evil\.OrderedDict"),
    "a prefix": (b"ctorch\nFloatStorage2\n.", "FloatStorage2"),
    "EXT1": (b"\x82\x01.", "EXT1"),
    "PERSID": (b"Pstorage\n.", "PERSID"),
    "NEXT_BUFFER": (b"\x97.", "NEXT_BUFFER"),
    "a terminal's controls": (b"\x80\x04\x8c\x06\x1b[31mx\x8c\x01y\x93.", r"\\x1b"),
}


@pytest.mark.parametrize(("code", "message"), HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_every_way_to_name_something_is_guarded(code: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        machine.Machine().load(io.BytesIO(code))


HARMLESS: dict[str, bytes] = {
    "BUILD of an OrderedDict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
    "BUILD of a stand-in": b"\x80\x02cnumpy\ndtype\n)R}X\x0d\x00\x00\x00__class__dummK\x01sb.",
    "BUILD of a class": b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
    "OBJ": b"\x80\x02(cnumpy\ndtype\no.",
    "NEWOBJ_EX": b"\x80\x04cnumpy\ndtype\n)}\x92.",
    "items of a stand-in": b"\x80\x02cnumpy\ndtype\n)RK\x01K\x02s(K\x01K\x02uK\x01a.",
    "_codecs.encode": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R.",
}


@pytest.mark.parametrize("code", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_allowed_names_do_is_inert(code: bytes) -> None:
    value = machine.Machine().load(io.BytesIO(code))
    assert value == {} or type(value).__module__ == machine.__name__


CALLS: dict[str, bytes] = {
    "a number": b"\x80\x02K\x01)R.",
    "a storage type": b"\x80\x02ctorch\nFloatStorage\nK\x09\x85R.",
    "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a parameter of no tensor": b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x89}\x87R.",
    "a size of a number": b"\x80\x02ctorch\nSize\nK\x01\x85R.",
    "arguments that are no tuple": b"\x80\x02ctorch\nSize\nK\x01R.",
}


@pytest.mark.parametrize("code", CALLS.values(), ids=CALLS.keys())
def test_calls_are_of_known_functions_with_their_arguments(code: bytes) -> None:
    with pytest.raises(ModelError, match="calls"):
        machine.Machine().load(io.BytesIO(code))


def storage(key: bytes = b"0", count: bytes = b"K\x04", kind: bytes = b"FloatStorage") -> bytes:
    """Instructions that refer to a storage; `count` is itself an instruction."""
    text = b"".join(b"X" + struct.pack("<I", len(part)) + part for part in (b"storage",))
    return (
        b"(" + text + b"ctorch\n" + kind + b"\n" + b"X" + struct.pack("<I", len(key)) + key
        + b"X\x03\x00\x00\x00cpu" + count + b"tQ"
    )  # fmt: skip


def rebuilt(shape: bytes, stride: bytes, offset: bytes = b"K\x00", of: bytes = storage()) -> bytes:
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + of + offset + shape + stride + b"\x89}tR."


LONG = struct.pack
TENSORS: dict[str, tuple[bytes, str]] = {
    "beyond the storage": (rebuilt(b"K\x05\x85", b"K\x01\x85"), "reaches beyond its storage"),
    "offset beyond it": (rebuilt(b"K\x04\x85", b"K\x01\x85", b"K\x01"), "reaches beyond its storage"),
    "stride beyond it": (rebuilt(b"K\x02\x85", b"K\x04\x85"), "reaches beyond its storage"),
    "expanded to a terabyte": (
        rebuilt(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"K\x00K\x00\x86"),
        "reaches beyond its storage",
    ),
    "negative offset": (rebuilt(b"K\x01\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"), "negative"),
    "negative size": (rebuilt(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "negative"),
    "negative stride": (rebuilt(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "negative"),
    "size of many digits": (rebuilt(b"\x8b\x00\x20\x00\x00" + b"\x01" * 0x2000 + b"\x85", b"K\x01\x85"), "negative"),
    "size that is true": (rebuilt(b"\x88\x85", b"K\x01\x85"), "no number"),
    "more sizes than strides": (rebuilt(b"K\x01K\x01\x86", b"K\x01\x85"), "2 sizes and 1 strides"),
    "a hundred sizes": (rebuilt(b"(" + b"K\x01" * 100 + b"t", b"(" + b"K\x01" * 100 + b"t"), "100 sizes"),
    "sizes that are no tuple": (rebuilt(b"K\x01", b"K\x01"), "damaged"),
    "of no storage": (rebuilt(b"K\x01\x85", b"K\x01\x85", of=b"K\x01"), "damaged"),
    "conjugated": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage()
        + b"K\x00K\x01\x85K\x01\x85\x89}}X\x04\x00\x00\x00conj\x88stR.",
        "conjugated",
    ),
    "storage of negative length": (storage(count=b"J\xff\xff\xff\xff") + b".", "impossible length"),
    "storage of endless length": (storage(count=b"\x8a\x10" + b"\x7f" * 16) + b".", "impossible length"),
    "storage of another type": (storage(kind=b"Size") + b".", "no storage"),
    "a persistent number": (b"K\x01Q.", "no storage"),
    "one storage, two lengths": (storage() + storage(count=b"K\x05") + b".", "in two ways"),
}


@pytest.mark.parametrize(("code", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_lie_within_their_storage(code: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        machine.Machine().load(io.BytesIO(code))


def test_views_of_legacy_storages_lie_within_them() -> None:
    def view(first: bytes, length: bytes) -> bytes:
        whole = storage()
        return whole[:-2] + b"X\x01\x00\x00\x00v" + first + length + b"\x87tQ."

    found = machine.Machine().load(io.BytesIO(view(b"K\x01", b"K\x03")))
    assert found == machine.Storage("0", torch.float32, 1, 3)
    for first, length in ((b"K\x02", b"K\x03"), (b"J\xff\xff\xff\xff", b"K\x01"), (b"K\x00", b"J\xff\xff\xff\xff")):
        with pytest.raises(ModelError, match="outside the storage"):
            machine.Machine().load(io.BytesIO(view(first, length)))


DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "no end": b"\x80\x02K\x01",
    "an unknown instruction": b"\xff.",
    "an empty stack": b"\x80\x02.",
    "a pop of nothing": b"0.",
    "no mark": b"K\x01t.",
    "a tuple of too little": b"K\x01\x86.",
    "a memo that is not there": b"j\xff\xff\xff\x7f.",
    "a memo of nothing": b"q\x01.",
    "an odd dictionary": b"(K\x01d.",
    "a list as a key": b"}]K\x01s.",
    "a deep tuple as a key": b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "items of a number": b"K\x01K\x02K\x03s.",
    "elements of a number": b"K\x01K\x02a.",
    "a string longer than the file": b"X\xff\xff\xff\x7fabc.",
    "bytes longer than memory": b"\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a negative length": b"T\xff\xff\xff\xffabc.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "an OrderedDict of a number": b"ccollections\nOrderedDict\nK\x01\x85R.",
    "an OrderedDict of no pairs": b"ccollections\nOrderedDict\n(lK\x01a\x85R.",
    "a broken text": b"X\x02\x00\x00\x00\xff\xfe.",
}


@pytest.mark.parametrize("code", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_pickles_are_errors(code: bytes) -> None:
    with pytest.raises(ModelError, match=r"damaged|no end"):
        machine.Machine().load(io.BytesIO(code))


def test_a_memo_number_reserves_nothing() -> None:
    assert machine.Machine().load(io.BytesIO(b"K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.")) == 7


def test_deep_nesting_is_no_recursion() -> None:
    value = machine.Machine().load(io.BytesIO(b"]" * 200_000 + b"a" * 199_999 + b"."))
    assert isinstance(value, list)


def test_endless_programs_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_STEPS", 1_000)
    with pytest.raises(ModelError, match="more than 1,000 steps"):
        machine.Machine().load(io.BytesIO(b"}" * 2_000 + b"."))
    # A list that is built once and copied again and again costs each time what it holds.
    pairs = b"(l(" + b"(lK\x01aK\x02a" * 100 + b"e"
    copies = b"q\x00" + b"0ccollections\nOrderedDict\nh\x00\x85R" * 20
    with pytest.raises(ModelError, match="steps"):
        machine.Machine().load(io.BytesIO(pairs + copies + b"."))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # invalid escapes in random text instructions
def test_random_changes_never_crash(data: st.DataObject) -> None:
    code = bytearray(pickle.dumps({"a": [1, (2.0, "x")], "b": {3: None}}, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 6))):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelError):
        machine.Machine().load(io.BytesIO(bytes(code)))


# Files around the pickle


@FORMATS
def test_every_truncation_is_one_clear_error(ckpt: Callable[..., Path], tmp_path: Path, zipped: bool) -> None:
    data = ckpt({"a": torch.randn(3), "b": torch.randn(2)}, zipped=zipped).read_bytes()
    short = tmp_path / "short.ckpt"
    for length in {*range(0, len(data) - 1, 9), len(data) - 2}:
        short.write_bytes(data[:length])
        with pytest.raises(ModelError, match=str(short)):
            read_checkpoint(short)


@FORMATS
def test_random_damage_never_crashes(ckpt: Callable[..., Path], tmp_path: Path, zipped: bool) -> None:
    data = ckpt({"a": torch.randn(3), "b": torch.randn(2)}, zipped=zipped).read_bytes()
    hurt = tmp_path / "hurt.ckpt"
    generator = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            changed[position] = generator.integers(0, 256)
        hurt.write_bytes(changed)
        try:
            with read_checkpoint(hurt) as file:
                assert all(len(tensor.shape) < 3 for tensor in read_all(file).values())
        except ModelError:
            continue


def rezip(path: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes | None) -> None:
    """Writes the archive anew, with records (slashes as `__`) replaced, added or, as None, left out."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    for name, content in changes.items():
        record = "model/" + name.replace("__", "/")
        if content is None:
            del records[record]
        else:
            records[record] = content
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in records.items():
            new.writestr(name, content)


ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "compressed": ({"compression": zipfile.ZIP_DEFLATED}, "compressed or encrypted"),
    "without a storage": ({"data__0": None}, "storage 0 is not in the archive"),
    "with a short storage": ({"data__0": b"1234"}, "has only 4 bytes"),
    "big-endian": ({"byteorder": b"big"}, "big-endian"),
    "of a program": ({"constants.pkl": b""}, "TorchScript"),
    "without a pickle": ({"data.pkl": None}, r"no data\.pkl"),
}


@pytest.mark.parametrize(("changes", "message"), ARCHIVES.values(), ids=ARCHIVES.keys())
def test_archives_of_other_content_are_named(ckpt: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    path = ckpt({"a": torch.randn(300)})
    rezip(path, **changes)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(path)


def test_plain_zip_writers_archives_are_read(ckpt: Callable[..., Path]) -> None:
    tensor = torch.randn(300)
    path = ckpt({"a": tensor})
    rezip(path)
    with read_checkpoint(path) as file:
        assert torch.equal(file.read("a"), tensor)


def test_a_bomb_is_never_inflated(ckpt: Callable[..., Path]) -> None:
    path = ckpt({"a": torch.zeros(1)})
    rezip(path, zipfile.ZIP_DEFLATED, **{"data.pkl": b"\x00" * 50_000_000})
    assert path.stat().st_size < 100_000
    with pytest.raises(ModelError, match="compressed"):
        read_checkpoint(path)


def test_large_archives_use_64_bit_fields(ckpt: Callable[..., Path], tmp_path: Path) -> None:
    """A sparse file puts the storage beyond 4 GiB, as in a full training checkpoint."""
    path = ckpt({"a": torch.arange(4)})
    data = path.read_bytes()
    gap = 5 * 2**30
    with path.open("rb") as file:
        records = archive.read_directory(file, len(data))
    moved = tmp_path / "large.ckpt"
    with moved.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(gap)
        file.write(data)
        start = file.tell()
        for record in records.values():
            extra = struct.pack("<2H3Q", 1, 24, record.size, record.size, record.header + gap)
            name = record.name.encode()
            head = struct.pack(
                "<4s6H3L5H2L",
                b"PK\x01\x02",
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                *[2**32 - 1] * 2,
                len(name),
                len(extra),
                0,
                0,
                0,
                0,
                2**32 - 1,
            )
            file.write(head + name + extra)
        end = file.tell()
        count = len(records)
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 0, 0, 0, 0, count, count, end - start, start))
        file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0))
    with read_checkpoint(moved) as file:
        assert file.tensors["a"].start > gap
        assert torch.equal(file.read("a"), torch.arange(4))


def directory_of(path: Path) -> tuple[bytearray, int]:
    data = bytearray(path.read_bytes())
    return data, data.rfind(b"PK\x05\x06")


def test_overlapping_storages_are_refused(ckpt: Callable[..., Path]) -> None:
    path = ckpt({"a": torch.zeros(4), "b": torch.ones(4)})
    rezip(path)
    data, _ = directory_of(path)
    with path.open("rb") as file:
        records = archive.read_directory(file, len(data))
    first, second = records["model/data/0"], records["model/data/1"]
    entry = data.rfind(second.name.encode()) - 46
    struct.pack_into("<L", data, entry + 42, first.header)
    path.write_bytes(data)
    with pytest.raises(ModelError, match="overlap"):
        read_checkpoint(path)


def test_duplicate_records_are_refused(ckpt: Callable[..., Path]) -> None:
    path = ckpt({"a": torch.zeros(4), "b": torch.ones(4)})
    data, _ = directory_of(path)
    path.write_bytes(data.replace(b"model/data/1", b"model/data/0"))
    with pytest.raises(ModelError, match="two records named"):
        read_checkpoint(path)


def test_implausible_directories_and_pickles_are_refused(
    ckpt: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ckpt({"a": torch.zeros(4)})
    with monkeypatch.context() as patch:
        patch.setattr(archive, "MAX_DIRECTORY", 10)
        with pytest.raises(ModelError, match="directory has"):
            read_checkpoint(path)
    monkeypatch.setattr(unpickle, "MAX_PICKLE", 10)
    with pytest.raises(ModelError, match=r"data\.pkl has \d+ bytes"):
        read_checkpoint(path)


def legacy_file(root: bytes, keys: list[str], rest: bytes, *, system: object = None, magic: int | None = None) -> bytes:
    head = [unpickle.MAGIC_NUMBER if magic is None else magic, 1001, system or {"little_endian": True}]
    return b"".join(pickle.dumps(value, 2) for value in head) + root + pickle.dumps(keys, 2) + rest


ROOT = b"\x80\x02}X\x01\x00\x00\x00a" + rebuilt(b"K\x04\x85", b"K\x01\x85")[2:-1] + b"s."
DATA = struct.pack("<q4f", 4, 1, 2, 3, 4)
LEGACY: dict[str, tuple[bytes, str]] = {
    "another pickle": (legacy_file(ROOT, ["0"], DATA, magic=7), "a pickle, but not a PyTorch checkpoint"),
    "big-endian": (legacy_file(ROOT, ["0"], DATA, system={"little_endian": False}), "big-endian"),
    "keys that are no list": (legacy_file(ROOT, {"0": 1}, DATA), "list of storages"),  # type: ignore[arg-type]
    "no storages": (legacy_file(ROOT, [], b""), "storage 0 is not in the file"),
    "an unknown storage": (legacy_file(ROOT, ["1", "0"], DATA), "storage 1 has"),
    "another length": (legacy_file(ROOT, ["0"], struct.pack("<q", 5) + DATA[8:]), "has 5 elements, not the 4"),
    "a short storage": (legacy_file(ROOT, ["0"], DATA[:-1]), "ends inside the storage 0"),
    "no tensors": (legacy_file(b"\x80\x02}.", [], b""), "holds no tensors"),
    "no dictionary": (legacy_file(b"\x80\x02K\x01.", [], b""), "no dictionary"),
}


def test_the_hand_written_legacy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(legacy_file(ROOT, ["0"], DATA))
    with read_checkpoint(path) as file:
        assert file.read("a").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("content", "message"), LEGACY.values(), ids=LEGACY.keys())
def test_legacy_files_are_checked(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(path)


def test_hand_written_instructions_run_nothing(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.ckpt"
    path.write_bytes(legacy_file(marker_call(marker) + b".", ["0"], DATA))
    with pytest.raises(ModelError, match=r"builtins\.open"):
        read_checkpoint(path)
    assert not marker.exists()
    # The test's own instructions do what they are feared for where a real unpickler reads them.
    pickle.loads(marker_call(marker) + b".").close()
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"just some text", "neither a PyTorch checkpoint nor a safetensors"),
        (b"PK\x03\x04 and nothing more", "incomplete"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(path)


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(ModelError, match="is a directory"):
        read_checkpoint(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(ckpt: Callable[..., Path]) -> None:
    path = ckpt({"a": torch.zeros(100_000)})
    with read_checkpoint(path) as file:
        with path.open("r+b") as shrinking:
            shrinking.truncate(1_000)
        with pytest.raises(ModelError, match="ends inside the tensor a"):
            file.read("a")
