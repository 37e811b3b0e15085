"""A pickle's structure, read without running anything in it.

A pickle is a program for a stack machine. This machine knows the instructions that build data, and the names of
`sd_core.formats.allowed`. It imports nothing and calls nothing foreign: an allowed name becomes a description, and a
call becomes a description of its result (`sd_core.formats.rebuild`). Every other name is refused.
Source of the instructions: the standard library's `pickletools`, which documents and splits them.
"""

import io
import pickletools

import torch

from sd_core.errors import ModelError
from sd_core.formats.allowed import ALLOWED, Meaning
from sd_core.formats.keys import show
from sd_core.formats.rebuild import Function, Inert, Parameters, Storage, StorageType, insert

# Instructions of one pickle. Each creates an object of a few hundred bytes at most, so this bounds the memory.
MAX_STEPS = 2_000_000

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


class Machine:
    """Reads pickles. `storages` collects the dtype and the length, in elements, of every storage they refer to."""

    def __init__(self) -> None:
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        self.stack: list[object] = []
        self.below: list[list[object]] = []  # the stacks that were set aside at each open mark
        self.memo: dict[int, object] = {}
        self.steps = 0

    def load(self, file: io.BytesIO) -> object:
        """The value of the next pickle. ModelError if it is damaged or hostile, or contains a name not allowed."""
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
        """The instructions that build containers, name things and call them."""
        match name:
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_SET":
                self.stack.append(Inert())
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
                self.stack.append(self._persistent(self.stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(self._call(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
                self.stack.append(self._call(function, arguments))
            case "BUILD":
                self._build(self.stack.pop())
            case _:
                raise ModelError(f"the pickle uses the instruction {name}, which no checkpoint needs")

    def _items(self) -> list[object]:
        """Closes the last mark and returns what was put on the stack since."""
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
            made: dict[object, object] = {}
            _set_items(made, items)
            return made
        if name == "INST":
            return self._call(_global(str(argument)), ())
        if name == "OBJ":
            return self._call(items[0], tuple(items[1:]))
        return Inert()  # a frozenset

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError("elements are added to something that is not a list")

    def _update(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            _set_items(target, items)
        elif not isinstance(target, Inert):
            raise TypeError("items are set in something that is not a dictionary")

    def _build(self, state: object) -> None:
        """Drop a state: containers keep only their items, and descriptions have no state.

        A `ParameterDict` has its items in its state.
        """
        target = self.stack[-1]
        items = state.get("_parameters") if isinstance(target, Parameters) and isinstance(state, dict) else None
        if isinstance(target, Parameters) and isinstance(items, dict):
            self._spend(len(items))
            target.update(items)

    def _call(self, function: object, arguments: object) -> object:
        """A description of what an allowed function or class would return."""
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise ModelError("the pickle calls something that is not an allowed function")
        # A container that is built once and passed many times costs its length each time.
        self._spend(sum(len(argument) for argument in arguments if isinstance(argument, list | tuple | dict)))
        try:
            return function.call(arguments)
        except (TypeError, ValueError, LookupError) as error:
            name = function.name.replace(" ", ".")
            raise ModelError(f"the pickle calls {name} with arguments that it does not take ({error})") from error

    def _persistent(self, identity: object) -> Storage | Function:
        """What a persistent id refers to: ("storage", type, key, location, elements[, view]) in most cases.

        The legacy format also writes ("module", class, file, source) for classes of modules, to keep their source.
        """
        match identity:
            case ("storage", StorageType(dtype), str(key), str(), int(count), *view):
                return self._storage(key, dtype, count, view)
            case ("module", Function() as named, *_):
                return named
            case _:
                raise ModelError("the pickle refers to something outside itself that is not a storage")

    def _storage(self, key: str, dtype: torch.dtype, count: int, view: list[object]) -> Storage:
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


def _global(name: str) -> Meaning:
    meaning = ALLOWED.get(name)
    if meaning is None:
        raise ModelError(
            f"the file names {show(name.replace(' ', '.'))}, which no checkpoint needs: refused, "
            "and nothing in the file was run"
        )
    return meaning


def _set_items(target: dict[object, object], items: list[object]) -> None:
    """Sets alternating keys and values."""
    if len(items) % 2:
        raise ValueError("a dictionary has a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        insert(target, key, value)
