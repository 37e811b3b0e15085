"""Files are found by name in their folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sd_core import catalogue as module
from sd_core import folder as folders
from sd_core.catalogue import ENDINGS, Catalogue, Kind, UnknownFile
from tests.support.catalogue import fill, names, refusal

KINDS = list(Kind)


def loras(*directories: Path) -> Catalogue:
    return Catalogue({Kind.LORA: directories})


def test_entries_have_their_name_path_and_stamp(tmp_path: Path) -> None:
    directory = fill(
        tmp_path / "l", "a.safetensors", "style/b.SAFETENSORS", "note.txt", ".hidden.safetensors", ".d/c.safetensors"
    )
    first, second = loras(directory).entries(Kind.LORA)
    assert (first.name, first.file_name, first.path) == ("a", "a.safetensors", directory / "a.safetensors")
    assert (second.name, second.file_name) == ("style/b", "style/b.SAFETENSORS")
    status = second.path.stat()
    assert (second.stamp.size, second.stamp.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert second.folder == directory
    assert names(loras(tmp_path / "absent")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_endings(tmp_path: Path, kind: Kind) -> None:
    files = [f"{number}{ending}" for number, ending in enumerate(ENDINGS[kind])]
    catalogue = Catalogue({kind: (fill(tmp_path, *files, "x.exe"),)})
    assert [entry.file_name for entry in catalogue.entries(kind)] == files
    for other in KINDS:
        if other is not kind:
            assert catalogue.entries(other) == ()


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("Style", "Style.safetensors"),
        ("style", "style.safetensors"),
        ("STYLE", "Style.safetensors"),
        ("Style.safetensors", "Style.safetensors"),
        ("style.SafeTensors", "Style.safetensors"),
        ("Style [abcdef12]", "Style.safetensors"),
        ("Style.safetensors [ABCDEF0123]", "Style.safetensors"),
        ("people/ada", "people/Ada.safetensors"),
        ("people/ada.safetensors [abcdef12]", "people/Ada.safetensors"),
        ("odd [abcdef12]", "odd [abcdef12].safetensors"),
        ("v1.5", "v1.5.safetensors"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9.safetensors"),
        ("\u7d75\u3000\u5e2b", "\u7d75\u3000\u5e2b.safetensors"),
    ],
)
def test_a_name_is_found_in_all_its_spellings(tmp_path: Path, asked: str, meant: str) -> None:
    files = (
        "Style.safetensors", "style.safetensors", "people/Ada.safetensors", "odd.safetensors",
        "odd [abcdef12].safetensors", "v1.5.safetensors", "v1.safetensors",
        "\u00e9t\u00e9.safetensors", "\u7d75\u3000\u5e2b.safetensors",
    )  # fmt: skip
    assert loras(fill(tmp_path, *files)).find(Kind.LORA, asked).file_name == meant


def test_earlier_folders_and_earlier_endings_come_first(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "1", "a.ckpt"), fill(tmp_path / "2", "a.safetensors", "b.ckpt", "b.safetensors")
    catalogue = Catalogue({Kind.CHECKPOINT: (first, second)})
    assert [entry.file_name for entry in catalogue.entries(Kind.CHECKPOINT)] == [
        "a.ckpt", "a.safetensors", "b.safetensors", "b.ckpt",
    ]  # fmt: skip
    found = {name: catalogue.find(Kind.CHECKPOINT, name).path for name in ("a", "a.safetensors", "b", "b.ckpt")}
    assert found == {
        "a": first / "a.ckpt",
        "a.safetensors": second / "a.safetensors",
        "b": second / "b.safetensors",
        "b.ckpt": second / "b.ckpt",
    }


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    catalogue = loras(fill(tmp_path, "watercolour.safetensors", "people/ada.safetensors"))
    assert refusal(catalogue, "watercolor.safetensors") == (
        "there is no LoRA named 'watercolor.safetensors'; did you mean 'watercolour'?"
    )
    assert "did you mean 'people/ada'?" in refusal(catalogue, "Ada [abcdef12]")
    assert refusal(catalogue, "zzz") == "there is no LoRA named 'zzz'"
    assert len(refusal(catalogue, "x" * 8000)) < 200
    assert len(refusal(catalogue, " " * 8000 + "[abcdef12]")) < 200


def test_a_folder_of_another_kind_inside_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "model.safetensors", "loras/style.safetensors", "more/model2.safetensors")
    catalogue = Catalogue({Kind.CHECKPOINT: (tmp_path,), Kind.LORA: (tmp_path / "loras",)})
    assert names(catalogue, Kind.CHECKPOINT) == ["model", "more/model2"]
    assert names(catalogue, Kind.LORA) == ["style"]
    shared = Catalogue({Kind.LORA: (tmp_path / "loras",), Kind.EMBEDDING: (tmp_path / "loras",)})
    assert names(shared, Kind.LORA) == names(shared, Kind.EMBEDDING) == ["style"]


def test_depth_and_number_of_directories_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.safetensors", "1/b.safetensors", "1/2/c.safetensors", "3/d.safetensors")
    assert names(Catalogue({Kind.LORA: (tmp_path,)}, max_depth=1)) == ["a"]
    assert names(Catalogue({Kind.LORA: (tmp_path,)}, max_depth=2)) == ["1/b", "3/d", "a"]
    monkeypatch.setattr(folders, "MAX_DIRECTORIES", 2)
    assert names(loras(tmp_path)) == ["1/b", "a"]


def test_a_new_file_appears_and_a_removed_one_goes(tmp_path: Path) -> None:
    directory = tmp_path / "l"
    catalogue = loras(directory)
    assert names(catalogue) == []
    fill(directory, "a.safetensors")  # in a folder that did not exist either
    assert catalogue.find(Kind.LORA, "a").path == directory / "a.safetensors"
    fill(directory, "deep/er/b.safetensors")
    assert catalogue.find(Kind.LORA, "deep/er/b").name == "deep/er/b"
    (directory / "a.safetensors").unlink()
    assert "no LoRA named 'a'" in refusal(catalogue, "a")


def test_a_replaced_file_has_a_new_stamp(tmp_path: Path) -> None:
    catalogue = loras(fill(tmp_path, "a.safetensors"))
    before = catalogue.find(Kind.LORA, "a").stamp
    assert catalogue.find(Kind.LORA, "a").stamp == before
    os.utime(tmp_path / "a.safetensors", ns=(1, 1))
    assert catalogue.find(Kind.LORA, "a").stamp == folders.Stamp(before.size, 1)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The folders that were scanned."""
    scanned: list[Path] = []

    def walk(folder: Path, *arguments: object) -> folders.Walked:
        scanned.append(folder)
        return folders.walk(folder, *arguments)

    monkeypatch.setattr(module, "walk", walk)
    return scanned


def test_an_unchanged_folder_is_not_scanned_again(
    tmp_path: Path, scans: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = loras(fill(tmp_path, "a.safetensors"))
    os.utime(tmp_path, ns=(1, 1))
    for name in ("a", "b", "c"):
        try:
            catalogue.find(Kind.LORA, name)
        except UnknownFile:
            continue
    assert len(scans) == 1
    os.utime(tmp_path, ns=(2, 2))
    catalogue.entries(Kind.LORA)
    assert len(scans) == 2
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + module.MAX_AGE_S + 1)
    catalogue.entries(Kind.LORA)
    assert len(scans) == 3


def test_a_directory_that_changed_just_before_its_scan_is_scanned_again(tmp_path: Path, scans: list[Path]) -> None:
    """Within one tick of the file system's clock a new file does not change its directory's time."""
    catalogue = loras(fill(tmp_path, "a.safetensors"))
    status = tmp_path.stat()
    catalogue.entries(Kind.LORA)
    fill(tmp_path, "b.safetensors")
    os.utime(tmp_path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert catalogue.find(Kind.LORA, "b").name == "b"
