"""What a pickle's function calls would return, described without calling anything.

Each function here takes the argument tuple that a pickle passes to the function of the same purpose in PyTorch or the
standard library. It returns a container of plain values, the description of a tensor, or an `Inert`, and raises
TypeError or ValueError if the arguments do not fit. Source of the signatures: `torch/_utils.py`, `torch/_tensor.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sd_core.errors import ModelError

MAX_DIMENSIONS = 16

# Elements of a tensor that repeats its storage (stride 0). The largest tensor of v1.x has 4e7; more than this is a
# bomb: a few bytes in the file that would fill the memory once they are expanded.
MAX_EXPANDED = 2**26

MAX_KEY_PARTS = 16
MAX_KEY_BITS = 128


@dataclass(frozen=True)
class StorageType:
    """A class of storages, such as `torch.FloatStorage`. Pickles name them, but never call them."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Function:
    """An allowed function or class, `module name` as pickles write it. `call` describes its result."""

    name: str
    call: Callable[[tuple[object, ...]], object]
    makes_tensor: bool = False


@dataclass(frozen=True, eq=False)
class Inert:
    """Stands for a value that no network needs. It accepts every instruction and holds nothing.

    `what` says what it is if it could be mistaken for a weight, as "a quantized tensor".
    """

    what: str = ""


class Parameters(dict[object, object]):
    """A `ParameterDict`, as the first textual inversions hold their vectors: its items are part of its state."""


@dataclass(frozen=True)
class Storage:
    """`count` elements, from element `first` on, of the storage that the file keeps under `key`."""

    key: str
    dtype: torch.dtype
    first: int
    count: int


@dataclass(frozen=True)
class PickledTensor:
    """A tensor that lies within its storage. `offset` and `stride` are in elements of `dtype`."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def inert(what: str = "") -> Callable[[tuple[object, ...]], Inert]:
    """A function that ignores its arguments and returns an `Inert`."""
    return lambda _arguments: Inert(what)


def insert(target: dict[object, object], key: object, value: object) -> None:
    """Sets an item. TypeError for keys whose hash could be slow or recurse deeply."""
    parts = [key]
    for part in parts:  # grows while it is traversed
        if isinstance(part, tuple):
            parts.extend(part[: MAX_KEY_PARTS + 1])
        elif isinstance(part, int):
            if part.bit_length() > MAX_KEY_BITS:
                raise TypeError("a dictionary has a key of too many digits")
        elif not isinstance(
            part, str | bytes | float | torch.dtype | StorageType | Function | Inert | PickledTensor | None
        ):
            raise TypeError(f"a dictionary has a {type(part).__name__} as its key")
        if len(parts) > MAX_KEY_PARTS:
            raise TypeError("a dictionary has a key of too many parts")
    target[key] = value


def ordered_dict(arguments: tuple[object, ...]) -> dict[object, object]:
    """`collections.OrderedDict`, whose items Python 2 wrote as a list of pairs."""
    made: dict[object, object] = {}
    if arguments:
        (pairs,) = arguments
        if not isinstance(pairs, list):
            raise TypeError("the items of an OrderedDict are not a list")
        for key, value in pairs:
            insert(made, key, value)
    return made


def default_dict(arguments: tuple[object, ...]) -> dict[object, object]:
    """`collections.defaultdict`: its items follow as instructions, its factory is not kept."""
    if len(arguments) > 1:
        raise TypeError("a defaultdict takes its factory only")
    return {}


def parameter_dict(_arguments: tuple[object, ...]) -> Parameters:
    """`torch.nn.ParameterDict`, still without its state."""
    return Parameters()


def counter(arguments: tuple[object, ...]) -> object:
    """`collections.Counter`, made of the dictionary of its counts."""
    (counts,) = arguments or ({},)
    if not isinstance(counts, dict):
        raise TypeError("the counts of a Counter are not a dictionary")
    return counts


def size(arguments: tuple[object, ...]) -> tuple[object, ...]:
    """`torch.Size`."""
    (sizes,) = arguments
    if not isinstance(sizes, tuple | list):
        raise TypeError("the sizes are not a tuple")
    return tuple(sizes)


def tensor(arguments: tuple[object, ...]) -> object:
    """`_rebuild_tensor`, and `_rebuild_tensor_v2` with or without metadata."""
    if len(arguments) not in (4, 6, 7):
        raise TypeError("a tensor is made of 4, 6 or 7 values")
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage):
        raise TypeError("a tensor is not made of a storage")
    return _tensor(storage, storage.dtype, offset, shape, stride, arguments[6:])


def tensor_v3(arguments: tuple[object, ...]) -> object:
    """`_rebuild_tensor_v3`: newer dtypes lie in storages of bytes, so the tensor brings its own dtype."""
    if len(arguments) not in (7, 8):
        raise TypeError("a tensor is made of 7 or 8 values")
    storage, offset, shape, stride, _, _, dtype, *metadata = arguments
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor is not made of a storage and a dtype")
    return _tensor(storage, dtype, offset, shape, stride, tuple(metadata))


def parameter(arguments: tuple[object, ...]) -> object:
    """Functions that wrap a tensor, their first argument: as a parameter, or for another device."""
    wrapped = arguments[0]
    if not isinstance(wrapped, PickledTensor | Inert):
        raise TypeError("a parameter is not made of a tensor")
    return wrapped


def new_parameter(arguments: tuple[object, ...]) -> object:
    """The class `Parameter` itself: before PyTorch 0.4 its tensor followed as a state."""
    return parameter(arguments) if arguments else Inert(LEGACY_TENSOR)


def typed(arguments: tuple[object, ...]) -> object:
    """`_rebuild_from_type_v2`: a tensor made by another function, with attributes, which are dropped."""
    function, _, inner, _ = arguments
    if not isinstance(function, Function) or not function.makes_tensor or not isinstance(inner, tuple):
        raise TypeError("the function named does not make a tensor")
    return function.call(inner)


LEGACY_TENSOR = "a tensor in the format of PyTorch before 0.4"


def _tensor(
    storage: Storage, dtype: torch.dtype, offset: object, shape: object, stride: object, metadata: tuple[object, ...]
) -> PickledTensor | Inert:
    """The tensor, if it lies within its storage. `metadata` holds what marks a conjugated or negated view."""
    if not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise TypeError("a tensor has no sizes and strides")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise ModelError(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    if not isinstance(offset, int) or not all(_is_length(number) for number in (offset, *shape, *stride)):
        raise ModelError("a tensor has an offset, size or stride that is negative or not a number")
    available = storage.count * storage.dtype.itemsize // dtype.itemsize
    elements, last = 1, offset
    for length, step in zip(shape, stride, strict=True):
        elements *= length
        last += (length - 1) * step
    if elements and last >= available:
        raise ModelError(f"a tensor of shape {list(shape)} reaches beyond its storage of {available} elements")
    if elements > max(available, MAX_EXPANDED):
        raise ModelError(f"a tensor of shape {list(shape)} is expanded from a storage of {available} elements")
    if any(metadata):
        return Inert("a conjugated or negated view of a tensor")
    return PickledTensor(storage, dtype, offset, shape, stride)


def _is_length(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63
