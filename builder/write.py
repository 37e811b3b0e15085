"""Writing a safetensors file tensor by tensor, so that it appears whole or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from builder.source import Part
from sd_core.errors import ModelError
from sd_core.formats.files import DTYPE_NAMES

ALIGNMENT = 64
"""The tensors begin at a multiple of this, so that views of a memory map suit vector instructions."""


def write_safetensors(
    destination: Path,
    parts: Sequence[Part],
    metadata: Mapping[str, str],
    written: Callable[[int], None],
    check: Callable[[], None],
) -> None:
    """Writes the parts beside `destination` and renames the complete file to it.

    `written` is told the bytes of each tensor; `check` is called before the rename, to stop it by raising.
    Whatever goes wrong, what was written is removed again.
    """
    # Wider elements first: each tensor then begins at a multiple of its element's size.
    parts = sorted(parts, key=lambda part: (-part.dtype.itemsize, part.name))
    temporary = destination.with_name(f"{_partial_prefix(destination)}{uuid.uuid4().hex}.partial")
    try:
        # Not tempfile: the file is to have the permissions that any other file here would get.
        with temporary.open("xb") as file:
            file.write(_header(parts, metadata))
            for part in parts:
                tensor = part.read().reshape(-1)
                file.write(tensor.view(torch.uint8).numpy().data)
                written(part.size)
            file.flush()
            os.fsync(file.fileno())
        check()
        temporary.replace(destination)
    except BaseException:  # an interrupt too leaves nothing half-written
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    _sync_directory(destination.parent)


def remove_partial(destination: Path) -> None:
    """Removes what killed conversions left behind; only for who holds the destination's lock."""
    prefix = _partial_prefix(destination)
    for path in destination.parent.iterdir():
        if path.name.startswith(prefix) and path.name.endswith(".partial"):
            path.unlink(missing_ok=True)


def _partial_prefix(destination: Path) -> str:
    return f".{destination.name}."


def _header(parts: Sequence[Part], metadata: Mapping[str, str]) -> bytes:
    """The format's beginning: the header's length as 8 bytes, then JSON, padded with spaces."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for part in parts:
        if part.dtype not in DTYPE_NAMES:
            raise ModelError(f"{part.name} has the dtype {part.dtype}, which safetensors does not store")
        header[part.name] = {
            "dtype": DTYPE_NAMES[part.dtype],
            "shape": list(part.shape),
            "data_offsets": [offset, offset + part.size],
        }
        offset += part.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _sync_directory(directory: Path) -> None:
    """Makes the rename outlast a power cut, where the file system can."""
    with contextlib.suppress(OSError):  # some network file systems refuse it; the file itself is safe
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
