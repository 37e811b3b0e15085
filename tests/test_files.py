"""Files of the volume in memory: each is read once, read again if it changed, and dropped beyond the budget."""

import os
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from sd_core.catalogue import Catalogue, Kind
from sd_core.errors import InvalidRequest, ModelError
from sd_core.volume import Library

SECONDS = 60


@dataclass(frozen=True)
class Content:
    text: str

    @property
    def nbytes(self) -> int:
        return len(self.text)


class Reader:
    """Reads files as text, slowly if `gate` is closed, and counts."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.begun, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, path: Path) -> Content:
        self.paths.append(path)
        self.begun.set()
        assert self.gate.wait(SECONDS)
        if path.read_text() == "damaged":
            raise ModelError(f"{path} is damaged; {path} should be copied again")
        return Content(path.read_text())


@pytest.fixture
def reader() -> Reader:
    return Reader()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.safetensors"
    path.write_text(text)
    return path


def library_of(folder: Path, max_bytes: int = 100) -> Library:
    return Library(Catalogue({Kind.LORA: (folder,)}), max_bytes)


def get(library: Library, name: str, reader: Reader, about: Hashable = None) -> str:
    return library.get(library.find(Kind.LORA, name, "loras[0].name"), reader, about).text


def refusal(library: Library, name: str, *others: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        library.find(Kind.LORA, name, "loras[0].name", others)
    return str(caught.value)


def test_a_file_is_read_once_for_each_thing_that_is_made_of_it(tmp_path: Path, reader: Reader) -> None:
    write(tmp_path, "one", "first")
    library = library_of(tmp_path)
    assert [get(library, name, reader) for name in ("one", "ONE", "one.safetensors")] == ["first"] * 3
    assert len(reader.paths) == 1
    get(library, "one", reader, about="on the device")
    assert len(reader.paths) == 2 and library.nbytes == 10


def test_a_file_that_several_threads_want_is_read_once(tmp_path: Path, reader: Reader) -> None:
    write(tmp_path, "one", "first")
    library, found = library_of(tmp_path), list[str]()
    entry = library.find(Kind.LORA, "one", "x")
    reader.gate.clear()
    threads = [threading.Thread(target=lambda: found.append(library.get(entry, reader).text)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)  # so that all of them want it while it is read
    reader.gate.set()
    for thread in threads:
        thread.join()
    assert found == ["first"] * 4 and len(reader.paths) == 1


def test_while_one_file_is_read_another_can_be(tmp_path: Path, reader: Reader) -> None:
    write(tmp_path, "slow", "first"), write(tmp_path, "quick", "second")
    library = library_of(tmp_path)
    reader.gate.clear()
    slow = threading.Thread(target=get, args=(library, "slow", reader))
    slow.start()
    assert reader.begun.wait(SECONDS)
    assert get(library, "quick", Reader()) == "second"
    reader.gate.set()
    slow.join()


def test_a_file_that_changed_is_read_again_and_its_old_content_is_dropped(tmp_path: Path, reader: Reader) -> None:
    path = write(tmp_path, "one", "first")
    library = library_of(tmp_path)
    assert get(library, "one", reader) == "first"
    path.write_text("other")
    os.utime(path, ns=(1, 1))
    assert get(library, "one", reader) == "other"
    assert library.nbytes == 5


def test_a_file_that_was_replaced_since_it_was_found_is_read_as_it_is(tmp_path: Path, reader: Reader) -> None:
    path = write(tmp_path, "one", "first")
    library = library_of(tmp_path)
    entry = library.find(Kind.LORA, "one", "x")
    path.write_text("another")
    assert library.get(entry, reader).text == get(library, "one", reader) == "another"
    assert len(reader.paths) == 1


def test_what_was_used_least_recently_is_dropped_beyond_the_budget(tmp_path: Path, reader: Reader) -> None:
    for name in "abc":
        write(tmp_path, name, 40 * name)
    library = library_of(tmp_path)
    for name in ("a", "b", "a", "c", "a"):
        get(library, name, reader)
    assert [path.stem for path in reader.paths] == ["a", "b", "c"]
    get(library, "b", reader)
    assert len(reader.paths) == 4 and library.nbytes == 80


def test_a_file_larger_than_the_budget_is_read_for_each_job(tmp_path: Path, reader: Reader) -> None:
    write(tmp_path, "large", "x" * 101)
    library = library_of(tmp_path)
    assert get(library, "large", reader) == get(library, "large", reader)
    assert len(reader.paths) == 2 and library.nbytes == 0


def test_errors_name_the_file_and_not_its_path(tmp_path: Path, reader: Reader) -> None:
    path = write(tmp_path, "one", "damaged")
    library = library_of(tmp_path)
    with pytest.raises(InvalidRequest) as caught:
        get(library, "one", reader)
    assert str(caught.value) == (
        "the LoRA 'one.safetensors' cannot be used: one.safetensors is damaged; one.safetensors should be copied again"
    )
    path.write_text("repaired")
    assert get(library, "one", reader) == "repaired"


def test_a_file_that_is_deleted_after_it_was_found_is_an_error_unless_it_is_kept(
    tmp_path: Path, reader: Reader
) -> None:
    kept, lost = write(tmp_path, "kept", "first"), write(tmp_path, "lost", "second")
    library = library_of(tmp_path)
    entries = [library.find(Kind.LORA, name, "x") for name in ("kept", "lost")]
    library.get(entries[0], reader)
    kept.unlink(), lost.unlink()
    assert library.get(entries[0], reader).text == "first"
    with pytest.raises(InvalidRequest, match=r"^the LoRA 'lost\.safetensors' cannot be used: it no longer exists$"):
        library.get(entries[1], reader)


def test_a_file_that_became_a_link_out_of_its_folder_is_not_read(tmp_path: Path, reader: Reader) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    path, secret = write(folder, "one", "first"), write(tmp_path, "secret", "second")
    library = library_of(folder)
    entry = library.find(Kind.LORA, "one", "x")
    path.unlink()
    path.symlink_to(secret)
    with pytest.raises(InvalidRequest, match="leads out of its folder"):
        library.get(entry, reader)
    assert not reader.paths


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    write(tmp_path, "one", "first")

    def forbidden(path: Path) -> Content:
        raise PermissionError(13, "Permission denied", str(path))

    library = library_of(tmp_path)
    with pytest.raises(InvalidRequest, match=r"^the LoRA 'one\.safetensors' cannot be read: Permission denied$"):
        library.get(library.find(Kind.LORA, "one", "x"), forbidden)


def test_a_failure_reaches_all_who_wait_and_is_not_kept(tmp_path: Path, reader: Reader) -> None:
    write(tmp_path, "one", "damaged")
    library, problems = library_of(tmp_path), list[str]()

    def attempt() -> None:
        with pytest.raises(InvalidRequest) as caught:
            get(library, "one", reader)
        problems.append(str(caught.value))

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(problems) == 3 and len(set(problems)) == 1
    write(tmp_path, "one", "repaired")
    assert get(library, "one", reader) == "repaired"


def test_an_unknown_name_is_answered_by_field_nearest_name_and_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, "Watercolour", "x"), write(tmp_path, "ink", "x")
    library = library_of(tmp_path)
    assert refusal(library, "watercolor") == (
        "loras[0].name: 'watercolor' is not here; did you mean 'Watercolour'?; there are: Watercolour, ink"
    )
    assert refusal(library, "lanczos4", "lanczos").startswith(
        "loras[0].name: 'lanczos4' is not here; did you mean 'lanczos'?; there are: lanczos, Watercolour"
    )
    assert refusal(library, "zzzz").startswith("loras[0].name: 'zzzz' is not here; there are: ")


def test_a_name_among_many_is_answered_by_the_nearest_alone(tmp_path: Path) -> None:
    for index in range(21):
        write(tmp_path, f"style{index:02}", "x")
    assert refusal(library_of(tmp_path), "style3") == ("loras[0].name: 'style3' is not here; did you mean 'style13'?")


@pytest.mark.parametrize("name", ["../one", "/etc/passwd", "..", "", "\\one", "a" * 5000, "\udcff", "x\0"])
def test_a_hostile_name_finds_nothing_and_is_shown_short(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    write(tmp_path, "one", "x")
    message = refusal(library_of(folder), name)
    assert message.startswith("loras[0].name: ") and message.endswith("; there is no LoRA on this worker")
    assert len(message) < 200 and message.isascii()


def test_a_refused_file_is_an_error_that_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    (folder / "one.safetensors").symlink_to(write(tmp_path, "one", "x"))
    assert refusal(library_of(folder), "one") == (
        "loras[0].name: the LoRA 'one' cannot be used: "
        "'one.safetensors' is a symbolic link that leads out of its folder"
    )


def test_what_is_made_of_several_files_is_made_again_in_another_state_of_them(tmp_path: Path) -> None:
    library, made = library_of(tmp_path), list[str]()

    def make(text: str) -> Content:
        made.append(text)
        return Content(text)

    for state in ("old", "old", "new", "new"):
        assert library.derived("all", state, partial(make, state)).text == state
    assert made == ["old", "new"] and library.nbytes == 3


def test_without_a_catalogue_there_is_no_file() -> None:
    assert Library().entries(Kind.LORA) == ()
    assert refusal(Library(), "one") == "loras[0].name: 'one' is not here; there is no LoRA on this worker"
