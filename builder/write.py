"""Writing a safetensors file tensor by tensor, atomically: it appears complete or not at all."""

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from builder.source import Part
from sd_core.formats.files import DTYPE_NAMES

# The tensors' data begins at a multiple of this, which vector instructions on the memory map prefer.
ALIGNMENT = 64


def write_safetensors(
    destination: Path,
    parts: Sequence[Part],
    metadata: Mapping[str, str],
    written: Callable[[int], None],
    check: Callable[[], None],
) -> None:
    """Write the parts to a temporary file beside `destination`, then rename it.

    `written` is called with the bytes of each tensor. `check` is called before the rename and may raise to prevent
    it. The temporary file is removed if anything fails.
    """
    # Wider elements first: each tensor then begins at a multiple of its element's size.
    parts = sorted(parts, key=lambda part: (-part.dtype.itemsize, part.name))
    temporary = destination.with_name(f"{_partial_prefix(destination)}{uuid.uuid4().hex}.partial")
    try:
        # Not tempfile: the file should get the permissions of any other new file.
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
    except BaseException:  # including KeyboardInterrupt
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    _sync_directory(destination.parent)


def remove_partial(destination: Path) -> None:
    """Remove temporary files of killed conversions. The caller holds the destination's lock."""
    prefix = _partial_prefix(destination)
    for path in destination.parent.iterdir():
        if path.name.startswith(prefix) and path.name.endswith(".partial"):
            path.unlink(missing_ok=True)


def _partial_prefix(destination: Path) -> str:
    return f".{destination.name}."


def _header(parts: Sequence[Part], metadata: Mapping[str, str]) -> bytes:
    """The start of the file: the header's length in 8 bytes, then JSON, padded with spaces."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for part in parts:
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
    """Make the rename survive a power failure, if the file system can."""
    with contextlib.suppress(OSError):  # some network file systems do not support it; the file itself is safe
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
