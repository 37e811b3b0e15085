import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.io.store import StorageFailed, safe_stem, store

HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", ".", ".hidden", "a\0b", "\0", "😀" * 128, "CON", "nul.txt", "-rf",
    "a/b\\c", "C:\\x", "x" * 128, " ", "\n", "é\u0301", "\u202egpj.exe", "~root", "$(touch x)",
]  # fmt: skip


@pytest.mark.parametrize("uid", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_uid_stays_in_the_outputs_directory(tmp_path: Path, uid: str) -> None:
    outputs = tmp_path / "a" / "outputs"
    paths = store(outputs, uid, [b"one", b"two"], "png")
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(everything) == sorted(paths)
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    for path in paths:
        assert path.parent == outputs
        assert path.name.isascii()
        assert path.name[0] not in ".-"
        assert len(path.name) < 100
        assert path.stem.upper() not in ("CON", "NUL")


def test_the_same_uid_twice_and_alike_uids_never_collide(tmp_path: Path) -> None:
    uids = ["job", "job", "JOB", "job/", "job\0", "j" * 128, "j" * 127]
    paths = [path for uid in uids for path in store(tmp_path, uid, [uid.encode()], "png")]
    assert len({path.name.lower() for path in paths}) == len(uids)
    assert [path.read_bytes() for path in paths] == [uid.encode() for uid in uids]


def test_the_name_shows_the_uid(tmp_path: Path) -> None:
    (path,) = store(tmp_path, "abc12345", [b"x"], "webp")
    assert path.name.startswith("abc12345-")
    assert path.suffix == ".webp"


@given(st.text(st.characters(), max_size=128))
def test_a_stem_is_made_of_harmless_characters(uid: str) -> None:
    stem = safe_stem(uid)
    assert len(stem) <= 48
    assert stem.isascii()
    assert not set(stem) & set("./\\\0:\n ")


def full_disk(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full_at_the_second(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            full_disk(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(StorageFailed, match=r"No space left on device") as caught:
        store(tmp_path, "job", [b"one", b"two", b"three"], "png")
    assert str(tmp_path) in str(caught.value)
    assert caught.value.code == "storage_failed"
    assert list(tmp_path.iterdir()) == []


def test_an_outputs_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("mine")
    with pytest.raises(StorageFailed, match="outputs"):
        store(tmp_path / "outputs", "job", [b"x"], "png")
    assert (tmp_path / "outputs").read_text() == "mine"
