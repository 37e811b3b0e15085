"""One folder on the volume: the files that lie in it, and whether a file really lies in it or is a link elsewhere."""

import os
import stat
import unicodedata
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

MAX_DIRECTORIES = 1000  # per folder; the walk is breadth-first, so the deepest directories are left out

LEADS_OUT = "is a symbolic link that leads out of its folder"
LEADS_NOWHERE = "is a symbolic link to nothing"


@dataclass(frozen=True)
class Stamp:
    """A file's size in bytes and its modification time. If either differs, the file was changed or replaced."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Walked:
    """What one walk through a folder found; all paths begin with the folder's own.

    `outside` are the directories that are links out of the folder. `directories` maps each directory that was listed
    to its modification time in nanoseconds, 0 if it does not exist.
    """

    files: tuple[Path, ...]
    outside: tuple[Path, ...]
    directories: dict[Path, int]


def walk(folder: Path, excluded: Set[str], max_depth: int) -> Walked:
    """List `folder` down to `max_depth` levels, without hidden entries and unprintable names.

    `excluded` are the real paths of sub-folders to leave out. Links to directories inside the folder are followed.
    """
    boundary = boundary_of(folder)
    files: list[Path] = []
    outside: list[Path] = []
    directories: dict[Path, int] = {}
    level: list[tuple[Path, frozenset[str]]] = [(folder, frozenset())]
    for _ in range(max_depth):
        below: list[tuple[Path, frozenset[str]]] = []
        for directory, above in level:
            real = os.path.realpath(directory)
            if directory != folder and not _is_inside(real, boundary):
                outside.append(directory)
                continue
            # A link to a directory that it lies in would be walked for ever.
            if real in above or (directory != folder and real in excluded) or len(directories) >= MAX_DIRECTORIES:
                continue
            directories[directory] = modified_ns(directory)
            for entry in _entries(directory):
                if _is_directory(entry):
                    below.append((Path(entry.path), above | {real}))
                else:
                    files.append(Path(entry.path))
        level = below
    return Walked(tuple(files), tuple(outside), directories)


def modified_ns(directory: Path) -> int:
    """The modification time in nanoseconds, 0 if there is no such directory."""
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0


def boundary_of(folder: Path) -> str:
    """The real directory that no link of `folder` may lead out of.

    It is the folder itself, except in Hugging Face's cache: a snapshot there is all links into the `blobs` of its
    repository, so the repository's directory is the boundary.
    """
    real = Path(os.path.realpath(folder))
    if real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir():
        real = real.parent.parent
    return str(real)


def inspect(path: Path, boundary: str) -> Stamp | str:
    """The stamp of a file that may be used, else what is wrong with it: the predicate of a sentence."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return LEADS_NOWHERE if path.is_symlink() else "no longer exists"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not _is_inside(os.path.realpath(path), boundary):
        return LEADS_OUT
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    return Stamp(status.st_size, status.st_mtime_ns)


def _is_inside(real: str, boundary: str) -> bool:
    return real == boundary or real.startswith(boundary.rstrip(os.sep) + os.sep)


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as found:
            return sorted((entry for entry in found if _is_listable(entry.name)), key=lambda entry: entry.name)
    except OSError:  # absent, not a directory, or not readable: nothing in it can be used
        return []


def _is_listable(name: str) -> bool:
    """Whether a job can name it: not hidden, valid Unicode without control characters and backslashes."""
    if name.startswith(".") or "\\" in name:
        return False
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in name)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
