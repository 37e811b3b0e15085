"""A pickle's structure, read without running anything that is in it.

A pickle is a program for a stack machine. The machine here knows its data instructions and an exact list of
global names; nothing is imported and nothing foreign is called, because a name becomes an inert stand-in and
the few functions that rebuild tensors are only described. Every other name is refused by that name.
Source of the instructions: the standard library's `pickletools`, which documents and splits them.
"""

import io
import pickletools
from dataclasses import dataclass

import torch

from sd_core.errors import ModelError
from sd_core.formats.keys import show

MAX_STEPS = 2_000_000
"""Instructions of one pickle. Each makes an object of a few hundred bytes at most, which bounds memory."""

MAX_DIMENSIONS = 16

_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch.storage UntypedStorage": torch.uint8,
    "torch.storage _UntypedStorage": torch.uint8,
}
_ORDERED_DICT = "collections OrderedDict"
_SIZE = "torch Size"
_REBUILD_TENSOR = frozenset({"torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"})
_REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
# What Lightning 1.x and numpy leave beside the weights: never needed, so never made.
_INERT = frozenset(
    {
        "_codecs encode",
        "numpy dtype",
        "numpy.core.multiarray scalar",
        "numpy._core.multiarray scalar",
        "torch device",
        "torch.storage TypedStorage",
        "torch.storage _TypedStorage",
        "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping EarlyStopping",
        "pytorch_lightning.utilities.parsing AttributeDict",
    }
)
_ALLOWED = frozenset({*_STORAGES, _ORDERED_DICT, _SIZE, *_REBUILD_TENSOR, _REBUILD_PARAMETER, *_INERT})

_CONSTANTS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *(
            "STRING",
            "BINSTRING",
            "SHORT_BINSTRING",
            "UNICODE",
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
        ),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
_VALUES: dict[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Global:
    """An allowed name, `module name`, as a pickle writes it; the thing itself is never looked up."""

    name: str


class _Inert:
    """Whatever an allowed but useless class or function would have made: takes everything, holds nothing."""

    __slots__ = ()


@dataclass(frozen=True)
class Storage:
    """`count` elements from element `first` on of the storage that the file keeps under `key`."""

    key: str
    dtype: torch.dtype
    first: int
    count: int


@dataclass(frozen=True)
class PickledTensor:
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Machine:
    """Runs one pickle. `storages` collects the dtype and length, in elements, of every storage named."""

    def __init__(self) -> None:
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # what lay on the stack before each open mark
        self.memo: dict[int, object] = {}
        self.steps = 0

    def load(self, file: io.BytesIO) -> object:
        """The next pickle's value; ModelError where it is damaged, hostile or names what is not allowed."""
        start = file.tell()
        self.stack, self.below, self.memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._spend(1)
                self._step(opcode.name, argument)
        except (ValueError, TypeError, LookupError, OverflowError, AttributeError) as error:
            raise ModelError(f"the pickle at byte {start} is damaged ({type(error).__name__}: {error})") from error
        raise ModelError(f"the pickle at byte {start} has no end")

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ModelError(f"the pickle takes more than {MAX_STEPS:,} steps: not a checkpoint")

    def _step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(argument)
        elif name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _TUPLES:
            self._tuple(_TUPLES[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name.endswith("PUT") or name == "MEMOIZE":
            assert isinstance(argument, int | None)
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name.endswith("GET"):
            assert isinstance(argument, int)
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        else:
            self._structure(name, argument)

    def _structure(self, name: str, argument: object) -> None:
        """The instructions that build containers and name things."""
        match name:
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_SET":
                self.stack.append(_Inert())
            case "TUPLE" | "LIST" | "DICT" | "FROZENSET" | "INST" | "OBJ":
                made = self._from_mark(name, self._items(), argument)
                self.stack.append(made)
            case "APPEND":
                self._extend([self.stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._items())
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self._update([key, value])
            case "SETITEMS":
                self._update(self._items())
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._items()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "GLOBAL":
                self.stack.append(_global(str(argument)))
            case "STACK_GLOBAL":
                attribute, module = self.stack.pop(), self.stack.pop()
                self.stack.append(_global(f"{module} {attribute}" if isinstance(module, str) else repr(type(module))))
            case "BINPERSID":
                self.stack.append(self._storage(self.stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self._call(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
                self.stack.append(self._call(function, arguments))
            case "BUILD":
                # State goes nowhere: containers keep their items only, and stand-ins have no state.
                self.stack.pop()
            case _:
                raise ModelError(f"the pickle uses the instruction {name}, which no checkpoint needs")

    def _items(self) -> list[object]:
        """What was put on the stack since the last mark, which is closed."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def _tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError("the stack is too short")
        first = len(self.stack) - length
        self.stack[first:] = [tuple(self.stack[first:])]

    def _from_mark(self, name: str, items: list[object], argument: object) -> object:
        if name == "TUPLE":
            return tuple(items)
        if name == "LIST":
            return items
        if name == "DICT":
            return _into({}, items)
        if name == "INST":
            return self._call(_global(str(argument)), ())
        if name == "OBJ":
            return self._call(items[0], tuple(items[1:]))
        return _Inert()  # a set, whose elements nothing needs

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, _Inert):
            raise TypeError("elements are added to what is no list")

    def _update(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            _into(target, items)
        elif not isinstance(target, _Inert):
            raise TypeError("items are set in what is no dictionary")

    def _call(self, function: object, arguments: object) -> object:
        """What an allowed function or class would make of its arguments, described and not made."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ModelError("the pickle calls what is no allowed name")
        name = function.name
        if name in _INERT:
            return _Inert()
        if name == _ORDERED_DICT:
            return self._ordered_dict(arguments)
        if name == _SIZE and len(arguments) == 1 and isinstance(arguments[0], tuple | list):
            self._spend(len(arguments[0]))
            return tuple(arguments[0])
        if name in _REBUILD_TENSOR and len(arguments) in (4, 6, 7):
            return _tensor(arguments)
        if name == _REBUILD_PARAMETER and len(arguments) == 3 and isinstance(arguments[0], PickledTensor):
            return arguments[0]
        raise ModelError(f"the pickle calls {name.replace(' ', '.')} with arguments that it does not take")

    def _ordered_dict(self, arguments: tuple[object, ...]) -> dict[object, object]:
        if not arguments:
            return {}
        (pairs,) = arguments  # Python 2 wrote the items here, as lists of two
        if not isinstance(pairs, list):
            raise TypeError("an OrderedDict is made of what is no list")
        self._spend(len(pairs))
        made: dict[object, object] = {}
        for key, value in pairs:
            _into(made, [key, value])
        return made

    def _storage(self, identity: object) -> Storage:
        """A storage that the pickle refers to: ("storage", type, key, location, elements[, view])."""
        match identity:
            case ("storage", _Global(name), str(key), str(), int(count), *view) if name in _STORAGES:
                dtype = _STORAGES[name]
            case _:
                raise ModelError("the pickle refers to something outside itself that is no storage")
        if not 0 <= count < 2**63:
            raise ModelError(f"the pickle describes a storage {show(key)} of an impossible length")
        if self.storages.setdefault(key, (dtype, count)) != (dtype, count):
            raise ModelError(f"the pickle describes the storage {show(key)} in two ways")
        match view:
            case [] | [None]:
                return Storage(key, dtype, 0, count)
            case [(_, int(first), int(length))] if first >= 0 and 0 <= length <= count - first:
                return Storage(key, dtype, first, length)
        raise ModelError(f"the pickle describes a view that lies outside the storage {show(key)}")


def _global(name: str) -> _Global:
    if name not in _ALLOWED:
        raise ModelError(
            f"the file names {show(name.replace(' ', '.'))}, which a checkpoint has no need of: refused, "
            "and nothing in the file was run"
        )
    return _Global(name)


def _into(target: dict[object, object], items: list[object]) -> dict[object, object]:
    """Sets alternating keys and values; keys only of kinds whose hash is neither foreign nor deep."""
    if len(items) % 2:
        raise ValueError("a dictionary has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, str | bytes | int | float | _Global | _Inert | None) for part in parts):
            raise TypeError(f"a dictionary has a {type(key).__name__} as its key")
        target[key] = value
    return target


def _tensor(arguments: tuple[object, ...]) -> PickledTensor:
    """A tensor of `_rebuild_tensor*`'s arguments that lies within its storage."""
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise TypeError("a tensor is not made of a storage, sizes and strides")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise ModelError(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    if not isinstance(offset, int) or not all(_is_length(number) for number in (offset, *shape, *stride)):
        raise ModelError("a tensor has an offset, size or stride that is no number or negative")
    if len(arguments) == 7 and arguments[6]:
        raise ModelError("a tensor is stored conjugated or negated, which checkpoints are not")
    elements, last = 1, offset
    for size, step in zip(shape, stride, strict=True):
        elements *= size
        last += (size - 1) * step
    if elements and (last >= storage.count or elements > storage.count):
        raise ModelError(f"a tensor of shape {list(shape)} reaches beyond its storage of {storage.count} elements")
    return PickledTensor(storage, offset, shape, stride)


def _is_length(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**63
