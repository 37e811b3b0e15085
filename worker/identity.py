"""Which model generated a picture: its name and the SHA-256 of the checkpoint that it comes from."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from sd_core.cache import LRU
from sd_core.catalogue import Entry
from sd_core.engine.checkpoints import Checkpoints
from worker.log import log

MAX_KNOWN = 4096  # versions of files whose hash is remembered


class ModelIdentity:
    """A model's name, file and hash. If the file does not give its source's hash, the file itself is hashed."""

    def __init__(self, name: str, sha256: str | None, path: Path) -> None:
        self.name, self.path = name, path
        self._sha256 = sha256

    def hash_in_background(self) -> None:
        """If the hash is not known, compute it on a thread; until that is done, the hash is None."""
        if self._sha256 is None:
            threading.Thread(target=self._hash, name="checkpoint hash", daemon=True).start()

    def describe(self) -> dict[str, str | None]:
        return {"name": self.name, "sha256": self._sha256}

    def _hash(self) -> None:
        try:
            with self.path.open("rb") as file:
                self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            log.warning("the checkpoint cannot be hashed", extra={"fields": {"error": str(error)}})


class Identities(Mapping[str, ModelIdentity]):
    """The identity of each checkpoint by name, as of now; a lookup raises `InvalidRequest` if it cannot be used.

    A file without its source's hash is hashed when it is first looked up, and again if it has changed.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._known: LRU[Entry, ModelIdentity] = LRU(MAX_KNOWN)

    def __getitem__(self, name: str) -> ModelIdentity:
        file = self._checkpoints.find(name)
        identity = self._known.get(file)
        if identity is None:
            identity = ModelIdentity(file.name, self._checkpoints.about(file).sha256, file.path)
            self._known.put(file, identity)
            identity.hash_in_background()
        return identity

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoints)

    def __len__(self) -> int:
        return len(self._checkpoints)


class NativeSizes(Mapping[str, int]):
    """The native side in pixels of each checkpoint by name, loaded or not, as of now."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def __getitem__(self, name: str) -> int:
        return self._checkpoints[name].native_size

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoints)

    def __len__(self) -> int:
        return len(self._checkpoints)
