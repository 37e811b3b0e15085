"""The outputs directory: every picture is stored there, whole or not at all."""

import os
import re
import secrets
from pathlib import Path

from sd_core.errors import SDError


class StorageFailed(SDError):
    """A picture could not be written to the outputs directory."""

    code = "storage_failed"


def safe_stem(uid: str) -> str:
    """A part of a file name that shows which job it belongs to, of at most 48 letters, digits, `-` and `_`.

    It may be empty, and several uids may share one: only the token that `store` adds makes a name unique.
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", uid)[:48].strip("_-")


def store(directory: Path, uid: str, pictures: list[bytes], extension: str) -> list[Path]:
    """Write each picture to a new file in `directory` and return their absolute paths, in order.

    A name is never used twice, so a job sent again with the same uid leaves the first one's pictures alone.
    Raises `StorageFailed`; then none of this job's pictures stays behind.
    """
    directory = directory.absolute()
    # The token makes the name unique, and makes of `CON` a name that no system reserves.
    stem = f"{safe_stem(uid) or 'picture'}-{secrets.token_hex(6)}"
    paths = [directory / f"{stem}-{index}.{extension}" for index in range(len(pictures))]
    written: list[Path] = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, picture in zip(paths, pictures, strict=True):
            _write_atomically(path, picture)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        reason = error.strerror or type(error).__name__
        raise StorageFailed(f"the pictures could not be stored in {directory}: {reason}") from error
    return paths


def _write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # an interrupt too leaves nothing half-written
        partial.unlink(missing_ok=True)
        raise
