"""Damaged and hostile files, apart from their pickles, and files of other kinds."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sd_core.errors import ModelError
from sd_core.formats import archive, unpickle
from sd_core.formats.unpickle import read_checkpoint
from tests.support.checkpoints import FORMATS, marker_call, read_all, rebuilt


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
    # A real unpickler does run these instructions, so the test can fail.
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
def test_other_kinds_of_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
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
