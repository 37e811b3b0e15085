"""No name and no link leads out of a folder, for every kind of file."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sd_core.catalogue import ENDINGS, Catalogue, Kind, UnknownFile
from tests.support.catalogue import fill, names, refusal


@pytest.fixture(params=list(Kind))
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def place(tmp_path: Path, kind: Kind) -> Path:
    """A folder with one file, and a secret beside it."""
    ending = ENDINGS[kind][0]
    fill(tmp_path, f"secret{ending}", f"outside/secret{ending}", f"folder/in{ending}", f"folder/sub/deep{ending}")
    return tmp_path / "folder"


def test_no_name_leads_out_of_its_folder(kind: Kind, place: Path) -> None:
    catalogue, ending = Catalogue({kind: (place,)}), ENDINGS[kind][0]
    assert catalogue.find(kind, "in").path == place / f"in{ending}"
    for name in (
        "../secret", f"../secret{ending}", "sub/../../secret", "./in", "sub/../in", "sub//deep", "/in", "",
        ".", "..", "/", str(place / "in"), str(place / f"in{ending}"), str(place.parent / "secret"), f"in{ending}\0",
        "in\0", "\0", "..\\secret", "sub\\deep", "~/secret", "file:///secret", "in/", "sub", "sub/", "C:\\secret",
    ):  # fmt: skip
        assert "no " in refusal(catalogue, name, kind)


def test_links_inside_are_followed_and_links_outside_are_refused_by_name(kind: Kind, place: Path) -> None:
    ending = ENDINGS[kind][0]
    (place / f"inner{ending}").symlink_to(f"sub/deep{ending}")
    (place / f"outer{ending}").symlink_to(place.parent / f"secret{ending}")
    (place / f"relative{ending}").symlink_to(f"../secret{ending}")
    (place / f"chain{ending}").symlink_to(f"outer{ending}")
    (place / f"broken{ending}").symlink_to("nothing")
    (place / f"loop{ending}").symlink_to(f"loop{ending}")
    (place / f"directory{ending}").mkdir()
    (place / "beside").symlink_to(place.parent / "outside")
    (place / "up").symlink_to("..")
    (place / "around").symlink_to(".")
    (place / "again").symlink_to("sub")
    catalogue = Catalogue({kind: (place,)})
    assert names(catalogue, kind) == ["again/deep", "in", "inner", "sub/deep"]
    assert catalogue.find(kind, "inner").path.read_bytes() == f"folder/sub/deep{ending}".encode()
    for name in (
        "outer",
        "relative",
        "chain",
        f"OUTER{ending}",
        "outer [abcdef12]",
        "beside/secret",
        "up/secret",
        "up/",
    ):
        assert "is a symbolic link that leads out of its folder" in refusal(catalogue, name, kind)
    assert f"'broken{ending}' is a symbolic link to nothing" in refusal(catalogue, "broken", kind)
    assert f"'loop{ending}' cannot be read" in refusal(catalogue, "loop", kind)
    assert "there is no" in refusal(catalogue, "around/in", kind)
    assert str(place.parent) not in refusal(catalogue, "outer", kind)


def test_a_link_that_is_turned_outwards_after_the_scan_is_refused(kind: Kind, place: Path) -> None:
    ending = ENDINGS[kind][0]
    link = place / f"link{ending}"
    link.symlink_to(f"in{ending}")
    os.utime(place, ns=(1, 1))
    catalogue = Catalogue({kind: (place,)})
    assert catalogue.find(kind, "link").name == "link"
    link.unlink()
    link.symlink_to(place.parent / f"secret{ending}")
    os.utime(place, ns=(1, 1))  # so that the scan is still taken for a fresh one
    assert "leads out of its folder" in refusal(catalogue, "link", kind)


def test_a_folder_that_is_itself_a_link_is_used(kind: Kind, place: Path) -> None:
    (place.parent / "link").symlink_to(place)
    catalogue = Catalogue({kind: (place.parent / "link",)})
    assert names(catalogue, kind) == ["in", "sub/deep"]
    assert catalogue.find(kind, "in").path.parent.name == "link"


def test_what_is_not_a_regular_file_is_refused(kind: Kind, place: Path) -> None:
    os.mkfifo(place / f"pipe{ENDINGS[kind][0]}")
    assert "is not a regular file" in refusal(Catalogue({kind: (place,)}), "pipe", kind)


def test_names_that_a_job_cannot_write_are_not_listed(kind: Kind, place: Path) -> None:
    ending = ENDINGS[kind][0]
    for name in ("a\\b", "new\nline", "tab\t", os.fsdecode(b"\xff")):
        (place / f"{name}{ending}").write_bytes(b"")
    assert names(Catalogue({kind: (place,)}), kind) == ["in", "sub/deep"]


PARTS = st.sampled_from(
    ["..", ".", "", "in", "sub", "deep", "secret", "out", "link", "\0", "~", "\\", " ", "[abcdef12]", ".ckpt"]
)
HOSTILE = st.one_of(
    st.text(max_size=30),
    st.lists(PARTS, max_size=6).map("/".join),
    st.lists(PARTS, max_size=6).map("\\".join),
    st.lists(PARTS, max_size=4).map(".safetensors".join),
    st.binary(max_size=20).map(os.fsdecode),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE)
@example(name="../secret.safetensors")
@example(name="out/secret")
@example(name="link")
def test_whatever_the_name_what_is_found_lies_inside(
    name: str, kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base, ending = Path(tmp_path_factory.getbasetemp()) / f"hostile-{kind}", ENDINGS[kind][0]
    folder = base / "folder"
    if not base.exists():
        fill(base, f"secret{ending}", f"folder/in{ending}", f"folder/sub/deep{ending}")
        (folder / "out").symlink_to(base)
        (folder / f"link{ending}").symlink_to(base / f"secret{ending}")
    for asked in (name, name + ending, f"{folder}/{name}"):
        try:
            entry = Catalogue({kind: (folder,)}).find(kind, asked)
        except UnknownFile:
            continue
        real = Path(os.path.realpath(entry.path))
        assert real.is_relative_to(os.path.realpath(folder))
        assert real in (
            Path(os.path.realpath(folder)) / f"in{ending}",
            Path(os.path.realpath(folder)) / f"sub/deep{ending}",
        )
