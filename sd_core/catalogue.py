"""What lies on the volume: checkpoints, LoRAs and other files, each found by its name and by nothing else.

A name never becomes a path. It is looked up in the list of files that a scan of the folders found, so that `..`,
absolute names and backslashes match nothing, and a symbolic link is listed only if its target lies inside its folder.
"""

import difflib
import os
import re
import threading
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from pathlib import Path

from sd_core.errors import InvalidRequest
from sd_core.folder import LEADS_OUT, Stamp, boundary_of, inspect, modified_ns, walk

MAX_DEPTH = 8
MAX_AGE_S = 10.0  # of a scan; modification times do not show everything, for example a link's new target
RECENT_NS = 2_000_000_000  # a directory that changed so shortly before a scan may change again without a new time
MAX_SHOWN = 100
A1111_HASH = re.compile(r"\[[0-9A-Fa-f]{6,64}\]\Z")


class Kind(StrEnum):
    CHECKPOINT = "checkpoint"
    LORA = "LoRA"
    EMBEDDING = "embedding"
    CONTROLNET = "ControlNet"
    VAE = "VAE"
    UPSCALER = "upscaler"
    IP_ADAPTER = "IP-Adapter"
    CLIP_VISION = "CLIP vision encoder"


# In the order of preference: if two files differ in their endings only, the plain name means the earlier one.
ENDINGS: Mapping[Kind, tuple[str, ...]] = {
    Kind.CHECKPOINT: (".safetensors", ".ckpt"),
    Kind.LORA: (".safetensors", ".pt", ".ckpt", ".bin"),
    Kind.EMBEDDING: (".safetensors", ".pt", ".bin", ".png", ".webp"),
    Kind.CONTROLNET: (".safetensors", ".pth", ".pt", ".bin"),
    Kind.VAE: (".safetensors", ".ckpt", ".pt"),
    Kind.UPSCALER: (".safetensors", ".pth", ".pt"),
    Kind.IP_ADAPTER: (".safetensors", ".bin"),
    Kind.CLIP_VISION: (".safetensors", ".bin"),
}

# The folders beside a checkpoint, by what they hold.
FOLDERS: Mapping[Kind, str] = {
    Kind.LORA: "loras",
    Kind.EMBEDDING: "embeddings",
    Kind.CONTROLNET: "controlnet",
    Kind.VAE: "vae",
    Kind.UPSCALER: "upscalers",
    Kind.IP_ADAPTER: "ip_adapters",
    Kind.CLIP_VISION: "clip_vision",
}


class UnknownFile(InvalidRequest):
    """No file of this kind has that name (then `nearest` is the most similar name), or `refused` may not be used."""

    def __init__(self, message: str, nearest: str | None = None, refused: str | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest
        self.refused = refused


@dataclass(frozen=True)
class Entry:
    """A file that may be used. `name` is its path inside `folder` with `/` between the parts, without the ending."""

    kind: Kind
    name: str
    folder: Path
    path: Path
    stamp: Stamp

    @property
    def file_name(self) -> str:
        """The name with the ending as the file has it."""
        return self.name + self.path.suffix


@dataclass(frozen=True)
class _Scan:
    """What one look at the folders of a kind found."""

    entries: tuple[Entry, ...]
    refused: Mapping[str, str]
    directories: Mapping[Path, int]
    wall_ns: int
    at: float

    def is_stale(self) -> bool:
        if time.monotonic() - self.at > MAX_AGE_S:
            return True
        changed = (modified_ns(path) != seen for path, seen in self.directories.items())
        return any(seen > self.wall_ns - RECENT_NS for seen in self.directories.values()) or any(changed)


class Catalogue:
    """The files of every kind in the folders given. Safe to use from several threads.

    Earlier folders come before later ones. A folder need not exist yet: a new file is found without a restart. A
    folder of another kind that lies in a folder is left out of it. `max_depth` 1 leaves all sub-folders out.
    """

    def __init__(self, folders: Mapping[Kind, Sequence[Path]], max_depth: int = MAX_DEPTH) -> None:
        self._folders = {kind: tuple(folders.get(kind, ())) for kind in Kind}
        self._max_depth = max_depth
        self._scans: dict[Kind, _Scan] = {}
        self._lock = threading.Lock()

    def has_folder(self, kind: Kind) -> bool:
        """Whether there are folders for files of this kind."""
        return bool(self._folders[kind])

    def entries(self, kind: Kind) -> tuple[Entry, ...]:
        """All files of `kind`, by folder and then by name; of two with one name the first is the one that is found."""
        return self._fresh(kind).entries

    def refused(self, kind: Kind) -> Mapping[str, str]:
        """The files of `kind` that may not be used: name with its folders and ending -> what is wrong with it.

        Most are symbolic links that lead out of their folder or to nothing; of a directory the name ends in `/`.
        """
        return self._fresh(kind).refused

    def find(self, kind: Kind, name: str) -> Entry:
        """The file that `name` means, with its stamp as of now.

        The name is compared exactly and then without regard to case, each time with and without the ending, and with
        A1111's ` [hash]` behind it. Raises `UnknownFile`.
        """
        scan = self._fresh(kind)
        entry = _look_up(scan.entries, name)
        if entry is not None:
            # A link may lead elsewhere since the scan, and the file may have been replaced.
            checked = inspect(entry.path, boundary_of(entry.folder))
            if isinstance(checked, Stamp):
                return Entry(kind, entry.name, entry.folder, entry.path, checked)
            raise _refusal(kind, name, entry.file_name, checked)
        for refused, reason in scan.refused.items():
            if _is_meant(kind, refused, name):
                raise _refusal(kind, name, refused, reason)
        nearest = _nearest(kind, scan.entries, name)
        hint = "" if nearest is None else f"; did you mean {nearest!r}?"
        raise UnknownFile(f"there is no {kind} named {_shown(name)}{hint}", nearest=nearest)

    def _fresh(self, kind: Kind) -> _Scan:
        with self._lock:
            scan = self._scans.get(kind)
            if scan is None or scan.is_stale():
                scan = self._scans[kind] = self._scan(kind)
            return scan

    def _scan(self, kind: Kind) -> _Scan:
        entries: list[Entry] = []
        refused: dict[str, str] = {}
        directories: dict[Path, int] = {}
        wall_ns, at = time.time_ns(), time.monotonic()
        excluded = self._real_folders(*(other for other in Kind if other is not kind)) - self._real_folders(kind)
        for folder in self._folders[kind]:
            found: list[Entry] = []
            walked, boundary = walk(folder, excluded, self._max_depth), boundary_of(folder)
            directories |= walked.directories
            for directory in walked.outside:
                refused.setdefault(directory.relative_to(folder).as_posix() + "/", LEADS_OUT)
            for path in walked.files:
                file_name = path.relative_to(folder).as_posix()
                name = _without_ending(kind, file_name)
                if name == file_name:
                    continue
                checked = inspect(path, boundary)
                if isinstance(checked, Stamp):
                    found.append(Entry(kind, name, folder, path, checked))
                else:
                    refused.setdefault(file_name, checked)
            entries += sorted(found, key=lambda entry: (entry.name, ENDINGS[kind].index(entry.path.suffix.lower())))
        return _Scan(tuple(entries), refused, directories, wall_ns, at)

    def _real_folders(self, *kinds: Kind) -> set[str]:
        return {os.path.realpath(folder) for kind in kinds for folder in self._folders[kind]}


def folders_in(directory: Path) -> dict[Kind, tuple[Path, ...]]:
    """The folders for everything but checkpoints, as they are named in the directory of a checkpoint."""
    return {kind: (directory / name,) for kind, name in FOLDERS.items()}


def entry_of(kind: Kind, path: Path) -> Entry:
    """A file outside any catalogue, named after itself, as of now. Its stamp is empty if it cannot be examined."""
    checked = inspect(path, boundary_of(path.parent))
    stamp = checked if isinstance(checked, Stamp) else Stamp(0, 0)
    return Entry(kind, path.stem, path.parent, path, stamp)


def has_ending(kind: Kind, name: str) -> bool:
    """Whether `name` ends as files of `kind` do, in upper or lower case."""
    return name.lower().endswith(ENDINGS[kind])


def _without_ending(kind: Kind, name: str) -> str:
    """`name` unchanged if it has no ending of its kind, or nothing else."""
    stem = name.rpartition(".")[0] if has_ending(kind, name) else name
    return name if not stem or stem.endswith("/") else stem


def _spellings(name: str) -> tuple[str, ...]:
    """What `name` may mean: a file may really end in `[hash]`, so the name as it is comes first."""
    without_hash = A1111_HASH.sub("", name)
    return (name,) if without_hash == name else (name, without_hash.rstrip())


def _look_up(entries: Sequence[Entry], name: str) -> Entry | None:
    for fold, spelling, attribute in product((_same, _folded), _spellings(name), ("file_name", "name")):
        wanted = fold(spelling)
        for entry in entries:
            if fold(getattr(entry, attribute)) == wanted:
                return entry
    return None


def _is_meant(kind: Kind, refused: str, name: str) -> bool:
    """Whether `name` means the refused file, or something in the refused directory."""
    refused = _folded(refused)
    for spelling in map(_folded, _spellings(name)):
        if spelling in (refused, _without_ending(kind, refused)):
            return True
        if refused.endswith("/") and spelling.startswith(refused):
            return True
    return False


def _same(name: str) -> str:
    return name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _refusal(kind: Kind, name: str, refused: str, reason: str) -> UnknownFile:
    return UnknownFile(f"the {kind} {_shown(name)} cannot be used: {refused!r} {reason}", refused=refused)


def _nearest(kind: Kind, entries: Sequence[Entry], name: str) -> str | None:
    """The most similar name; a file of that very name in a sub-folder comes first."""
    names = {_folded(entry.name): entry.name for entry in reversed(entries)}
    wanted = _folded(_without_ending(kind, _spellings(name)[-1])[:MAX_SHOWN])
    nearest = [folded for folded in names if folded.rpartition("/")[2] == wanted]
    nearest = nearest or difflib.get_close_matches(wanted, names, n=1)
    return names[nearest[0]] if nearest else None


def _shown(name: str) -> str:
    return repr(name) if len(name) <= MAX_SHOWN else repr(name[:MAX_SHOWN]) + "..."
