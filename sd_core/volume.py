"""Files of the volume in memory: read when a job first needs them, kept within a budget, read again if they change."""

import threading
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sd_core.cache import LRU
from sd_core.catalogue import Catalogue, Entry, Kind, UnknownFile
from sd_core.checks import shorten
from sd_core.errors import InvalidRequest, ModelError
from sd_core.folder import Stamp, boundary_of, inspect

MAX_KEPT, MAX_BYTES = 2**16, 2**32
MAX_LISTED = 20


class Sized(Protocol):
    """What is kept in memory."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Library:
    """The files of a catalogue, as whatever reads them makes of them. Safe to use from several threads.

    What was used least recently is dropped beyond `max_bytes`; whoever uses it keeps it alive.
    """

    def __init__(self, catalogue: Catalogue | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._catalogue = Catalogue({}) if catalogue is None else catalogue
        self._kept: LRU[Hashable, _Kept] = LRU(MAX_KEPT, max_bytes, _size)
        self._pending: dict[Hashable, Future[Any]] = {}
        self._lock = threading.Lock()  # over both

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self._kept.used

    def has_folder(self, kind: Kind) -> bool:
        """Whether there are folders for files of this kind."""
        return self._catalogue.has_folder(kind)

    def entries(self, kind: Kind) -> tuple[Entry, ...]:
        """All files of this kind, without reading them."""
        return self._catalogue.entries(kind)

    def find(self, kind: Kind, name: str, field: str, others: Collection[str] = ()) -> Entry:
        """The file that `name` means, without reading it. `others` are names that mean something without a file.

        Raises `InvalidRequest` that names the field, the nearest name, and all names if they are few.
        """
        try:
            return self._catalogue.find(kind, name)
        except UnknownFile as error:
            if error.refused is not None:
                raise InvalidRequest(f"{field}: {error}") from None
            nearest = error.nearest
        known = list(dict.fromkeys([*others, *(entry.name for entry in self.entries(kind))]))
        near = [nearest] if nearest else get_close_matches(name[:100].casefold(), others, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = f"; there are: {', '.join(known)}" if 0 < len(known) <= MAX_LISTED else ""
        none = "" if known else f"; there is no {kind} on this worker"
        raise InvalidRequest(f"{field}: {shorten(name)} is not here{hint}{listed}{none}")

    def get(self, entry: Entry, read: Callable[[Path], T], about: Hashable = None) -> T:
        """What `read` makes of the file; blocks while it is read, by this thread or by another one.

        `about` names what else the result depends on, if `read` can make several things of one file. Raises
        `InvalidRequest` that names the file, not its path, if it cannot be read or used.
        """
        key = entry.kind, entry.path, about
        try:
            with self._lock:
                kept = self._of(key, entry.stamp)
            if kept is not None:
                return kept.value  # type: ignore[no-any-return]
            # The file may have changed since it was found; it is read as it is now.
            return self.derived(key, _stamp_of(entry), lambda: read(entry.path))
        except ModelError as error:
            named = str(error).replace(str(entry.path), entry.file_name)
            raise InvalidRequest(f"the {entry.kind} {entry.file_name!r} cannot be used: {named}") from error
        except OSError as error:
            reason = error.strerror or error
            raise InvalidRequest(f"the {entry.kind} {entry.file_name!r} cannot be read: {reason}") from error

    def derived(self, key: Hashable, state: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes of files, kept as they are until it is asked for in another `state` of them."""
        with self._lock:
            kept = self._of(key, state)
            if kept is not None:
                return kept.value  # type: ignore[no-any-return]
            pending = self._pending.get((key, state))
            if pending is None:
                own: Future[T] = Future()
                self._pending[key, state] = own
        if pending is None:
            return self._made(key, state, make, own)
        result: T = pending.result()
        return result

    def release(self) -> None:
        """Drop all that is kept, because memory is short; what is in use lives on."""
        with self._lock:
            self._kept.clear()

    def _of(self, key: Hashable, state: Hashable) -> "_Kept | None":
        kept = self._kept.get(key)
        return kept if kept is not None and kept.state == state else None

    def _made(self, key: Hashable, state: Hashable, make: Callable[[], T], future: Future[T]) -> T:
        """Make it for all threads that wait for `future`."""
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._pending[key, state]
            future.set_exception(error)
            raise
        with self._lock:
            del self._pending[key, state]
            self._kept.put(key, _Kept(state, value))
        future.set_result(value)
        return value


@dataclass(frozen=True)
class _Kept:
    """A value, and the state of the files that it was made of."""

    state: Hashable
    value: Any


def _size(kept: _Kept) -> int:
    size: int = kept.value.nbytes
    return size


def _stamp_of(entry: Entry) -> Stamp:
    """The file's stamp as of now. Raises `ModelError` if it may no longer be used."""
    checked = inspect(entry.path, boundary_of(entry.folder))
    if isinstance(checked, str):
        raise ModelError(f"it {checked}")
    return checked
