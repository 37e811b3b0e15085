"""Which model generated a picture: its name and the SHA-256 of the checkpoint that it comes from."""

import hashlib
import threading
from pathlib import Path

from worker.log import log


class ModelIdentity:
    """A model's name and hash. If the file does not give its source's hash, the file itself is hashed."""

    def __init__(self, name: str, sha256: str | None, checkpoint: Path) -> None:
        self.name = name
        self._sha256 = sha256
        self._checkpoint = checkpoint

    def hash_in_background(self) -> None:
        """If the hash is not known, compute it on a thread; until that is done, the hash is None."""
        if self._sha256 is None:
            threading.Thread(target=self._hash, name="checkpoint hash", daemon=True).start()

    def describe(self) -> dict[str, str | None]:
        return {"name": self.name, "sha256": self._sha256}

    def _hash(self) -> None:
        try:
            with self._checkpoint.open("rb") as file:
                self._sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            log.warning("the checkpoint cannot be hashed", extra={"fields": {"error": str(error)}})
