"""PyTorch's `.ckpt` files, zip and legacy, read without running anything in them.

All pickles enter through this module, and only `sd_core.formats.machine` reads their instructions.
"""

import io
import os
from itertools import pairwise
from pathlib import Path

import torch

from sd_core.errors import ModelError
from sd_core.formats.archive import Record, data_offset, read_directory
from sd_core.formats.files import (
    StoredTensor,
    TensorFile,
    first_bytes,
    is_pickle,
    not_a_model,
    open_safetensors,
)
from sd_core.formats.keys import is_weight, show
from sd_core.formats.machine import Machine
from sd_core.formats.prediction import is_marker
from sd_core.formats.rebuild import Inert, PickledTensor

# Bytes of pickled structure, without the tensors. That of a full v1.x training checkpoint has about one megabyte.
MAX_PICKLE = 64 * 2**20

# A full v1.x training checkpoint has a few thousand names, of up to 120 characters. The limits keep nested
# dictionaries that share their content from multiplying it.
MAX_ENTRIES = 1_000_000
MAX_NAME = 1_000

# The legacy format begins with these two numbers (`torch.serialization`).
MAGIC_NUMBER, PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001

_BIG_ENDIAN = "it was written on a big-endian machine; save it again on a little-endian one"


def open_checkpoint(path: Path) -> TensorFile:
    """A file of tensors in any format, recognized by its content, not by its name. ModelError as for either format."""
    return read_checkpoint(path) if is_pickle(first_bytes(path)) else open_safetensors(path)


def read_checkpoint(path: Path) -> TensorFile:
    """The tensors of a `.ckpt` (zip or legacy format) by name, none of them read yet.

    The names are those of the state dict, nested under `state_dict` or at the top. ModelError if the file is
    missing, damaged or not a checkpoint, or if it names anything outside the allowed list.
    """
    head = first_bytes(path)
    what = not_a_model(head)
    if not is_pickle(head):
        raise ModelError(f"{path} {what or 'is neither a PyTorch checkpoint nor a safetensors file'}")
    file = path.open("rb")
    try:
        size = os.fstat(file.fileno()).st_size
        kind = "zip" if head.startswith(b"PK") else "legacy"
        root, starts = (_read_zip if kind == "zip" else _read_legacy)(file, size)
        tensors = {name: _place(tensor, starts) for name, tensor in _named(root).items()}
    except ModelError as error:
        file.close()
        raise ModelError(f"{path}: {error}") from None
    except BaseException:  # including KeyboardInterrupt: the caller has no file to close
        file.close()
        raise
    return TensorFile(path, f"PyTorch checkpoint ({kind} format)", tensors, {}, file)


def _read_zip(file: io.BufferedReader, size: int) -> tuple[object, dict[str, int]]:
    """The pickled value and the byte offset of each of its storages. PyTorch 1.6 and later write this format."""
    records = read_directory(file, size)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ModelError("a zip archive, but not a PyTorch checkpoint (it has no data.pkl)")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records:
        raise ModelError("a TorchScript program, not a checkpoint of weights")

    order = records.get(f"{prefix}byteorder")
    if order is not None and _content(file, order, size) != b"little":
        raise ModelError(_BIG_ENDIAN)
    machine = Machine()
    root = machine.load(io.BytesIO(_content(file, records[pickles[0]], size)))
    starts: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for key, (dtype, count) in machine.storages.items():
        record = records.get(f"{prefix}data/{key}")
        if record is None:
            raise ModelError(f"the storage {show(key)} is not in the archive")
        if count * dtype.itemsize > record.size:
            raise ModelError(f"the storage {show(key)} of {count} elements has only {record.size} bytes in the archive")
        starts[key] = data_offset(file, record, size)
        spans.append((starts[key], starts[key] + record.size))
    spans.sort()
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        raise ModelError("two storages overlap in the archive")
    return root, starts


def _content(file: io.BufferedReader, record: Record, size: int) -> bytes:
    """The bytes of a record that is not a tensor."""
    start = data_offset(file, record, size)
    if record.size > MAX_PICKLE:
        raise ModelError(f"the record {show(record.name)} has {record.size} bytes: not a checkpoint")
    file.seek(start)
    return file.read(record.size)


def _read_legacy(file: io.BufferedReader, size: int) -> tuple[object, dict[str, int]]:
    """The same for the legacy format: five pickles in a row, then each storage behind its number of elements."""
    pickles = io.BytesIO(file.read(min(size, MAX_PICKLE)))
    machine = Machine()
    magic, version = machine.load(pickles), machine.load(pickles)
    if (magic, version) != (MAGIC_NUMBER, PROTOCOL_VERSION):
        raise ModelError("a pickle, but not a PyTorch checkpoint")
    system = machine.load(pickles)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise ModelError(_BIG_ENDIAN)
    root, keys = machine.load(pickles), machine.load(pickles)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ModelError("its list of storages is damaged")
    starts: dict[str, int] = {}
    position = pickles.tell()
    for key in keys:
        dtype, count = machine.storages.get(key, (torch.uint8, -1))
        file.seek(position)
        written = int.from_bytes(file.read(8), "little", signed=True)
        starts[key] = position + 8
        position = starts[key] + count * dtype.itemsize
        if position > size:
            raise ModelError(f"it ends inside the storage {show(key)}: the file is incomplete")
        if written != count:
            raise ModelError(f"the storage {show(key)} has {written} elements, not the {count} that the pickle says")
    return root, starts


def _named(root: object) -> dict[str, PickledTensor]:
    """The state dict's tensors. Without a `state_dict`, also those one level deeper, under joined names.

    Items of a list are named by their indices.
    """
    if isinstance(root, list):
        root = {str(index): item for index, item in enumerate(root)}
    if not isinstance(root, dict):
        raise ModelError("it holds no dictionary of tensors")
    nested = root.get("state_dict")
    state = nested if isinstance(nested, dict) else root
    tensors = _tensors(state)
    if state is root:
        inner = {name: values for name, values in root.items() if isinstance(name, str) and isinstance(values, dict)}
        if sum(len(values) for values in inner.values()) > MAX_ENTRIES:
            raise ModelError(f"it holds more than {MAX_ENTRIES:,} entries: not a checkpoint")
        for name, values in inner.items():
            tensors |= _tensors(values, f"{name}.")
    else:  # markers may stand on either level
        tensors |= {name: tensor for name, tensor in _tensors(root).items() if is_marker(name)}
    if not tensors:
        raise ModelError("it holds no tensors")
    return tensors


def _tensors(values: dict[object, object], prefix: str = "") -> dict[str, PickledTensor]:
    tensors: dict[str, PickledTensor] = {}
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor | Inert):
            continue
        if len(prefix) + len(name) > MAX_NAME:
            raise ModelError(f"it holds a name of {len(prefix) + len(name):,} characters: not a checkpoint")
        if isinstance(value, PickledTensor):
            tensors[prefix + name] = value
        elif value.what and is_weight(prefix + name):
            raise ModelError(f"{show(prefix + name)} is {value.what}: only plain, dense tensors can be read")
    return tensors


def _place(tensor: PickledTensor, starts: dict[str, int]) -> StoredTensor:
    storage = tensor.storage
    if storage.key not in starts:
        raise ModelError(f"the storage {show(storage.key)} is not in the file")
    first = starts[storage.key] + storage.first * storage.dtype.itemsize
    return StoredTensor(tensor.dtype, tensor.shape, first + tensor.offset * tensor.dtype.itemsize, tensor.stride)
