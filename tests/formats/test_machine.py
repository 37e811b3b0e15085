"""Hostile pickles: they are refused, and nothing in them runs."""

import contextlib
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sd_core.errors import ModelError
from sd_core.formats import machine
from sd_core.formats.allowed import ALLOWED
from sd_core.formats.rebuild import Function, Inert, Storage
from sd_core.formats.unpickle import read_checkpoint
from tests.support.checkpoints import FORMATS, rebuilt, storage, text


class Evil:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@FORMATS
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (open, "io.open"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (torch.load, "torch.serialization.load"),
        (torch.storage._load_from_bytes, "torch.storage._load_from_bytes"),
        (np.fromfile, "numpy.fromfile"),
        (np.load, "numpy.load"),
        (torch.compile, "torch.compile"),
        (torch.hub.load, "torch.hub.load"),
    ],
)
def test_a_name_that_is_not_on_the_list_is_refused_by_that_name(
    ckpt: Callable[..., Path], tmp_path: Path, zipped: bool, function: Callable[..., object], name: str
) -> None:
    marker = tmp_path / "marker"
    path = ckpt({"state_dict": {"a": torch.zeros(1)}, "x": Evil(function, str(marker), "w")}, zipped=zipped)
    module, _, attribute = name.rpartition(".")
    with pytest.raises(
        ModelError, match=rf"names (_?{module}|__builtin__)\.{attribute}, .*nothing in the file was run"
    ):
        read_checkpoint(path)
    assert not marker.exists()


HOSTILE_NAMES: dict[str, tuple[bytes, str]] = {
    "GLOBAL": (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
    "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"os\.system"),
    "STACK_GLOBAL of no strings": (b"\x80\x04K\x01K\x02\x93.", "refused"),
    "INST": (b"(S'true'\nios\nsystem\n.", r"os\.system"),
    "a dotted attribute": (b"\x80\x04\x8c\x05torch\x8c\x15FloatStorage.__init__\x93.", r"FloatStorage\.__init__"),
    "an allowed module": (b"ctorch._utils\n_import_dotted_name\n.", "_import_dotted_name"),
    "an allowed name elsewhere": (b"cevil\nOrderedDict\n.", r"evil\.OrderedDict"),
    "a prefix": (b"ctorch\nFloatStorage2\n.", "FloatStorage2"),
    "eval beside the allowed builtins": (b"cbuiltins\neval\n.", r"builtins\.eval"),
    "eval as Python 2 names it": (b"c__builtin__\neval\n.", r"__builtin__\.eval"),
    "type": (b"c__builtin__\ntype\n.", r"__builtin__\.type"),
    "object": (b"c__builtin__\nobject\n.", r"__builtin__\.object"),
    "a chain of getattr": (
        b"cbuiltins\ngetattr\n(cbuiltins\ngetattr\n(ctorch\nTensor\n" + text(b"a") + b"tR" + text(b"b") + b"tR.",
        r"builtins\.getattr",
    ),
    "an attribute of an allowed builtin": (b"\x80\x04\x8c\x08builtins\x8c\x09set.clear\x93.", r"set\.clear"),
    "operator": (b"coperator\nattrgetter\n.", r"operator\.attrgetter"),
    "a partial": (b"cfunctools\npartial\n.", r"functools\.partial"),
    "copyreg": (b"ccopy_reg\n_reconstructor\n.", r"copy_reg\._reconstructor"),
    "numpy's own exec": (b"cnumpy.testing._private.utils\nrunstring\n.", "runstring"),
    "numpy's memory map": (b"cnumpy\nmemmap\n.", r"numpy\.memmap"),
    "torch's bytes loader": (b"ctorch.storage\n_load_from_bytes\n.", "_load_from_bytes"),
    "torch's compiler": (b"ctorch._dynamo.utils\nimport_submodule\n.", "import_submodule"),
    "torch's package importer": (b"ctorch.package\nPackageImporter\n.", "PackageImporter"),
    "torch's jit": (b"ctorch.jit\nload\n.", r"torch\.jit\.load"),
    "a module class with its source": (
        b"\x80\x02(" + text(b"module") + b"ctorch.nn.modules.container\nSequential\n" + text(b"f") * 2 + b"tQ.",
        "Sequential",
    ),
    "EXT1": (b"\x82\x01.", "EXT1"),
    "PERSID": (b"Pstorage\n.", "PERSID"),
    "NEXT_BUFFER": (b"\x97.", "NEXT_BUFFER"),
    "a terminal's controls": (b"\x80\x04\x8c\x06\x1b[31mx\x8c\x01y\x93.", r"\\x1b"),
}


@pytest.mark.parametrize(("code", "message"), HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())
def test_forbidden_names_are_refused_by_every_instruction(code: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        machine.Machine().load(io.BytesIO(code))


HARMLESS: dict[str, bytes] = {
    "BUILD of an OrderedDict": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
    "BUILD of an object": b"\x80\x02cnumpy\ndtype\n)R}X\x0d\x00\x00\x00__class__dummK\x01sb.",
    "BUILD of a class": b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.",
    "OBJ": b"\x80\x02(cnumpy\ndtype\no.",
    "NEWOBJ_EX": b"\x80\x04cnumpy\ndtype\n)}\x92.",
    "items of an object": b"\x80\x02cnumpy\ndtype\n)RK\x01K\x02s(K\x01K\x02uK\x01a.",
    "_codecs.encode": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R.",
}


@pytest.mark.parametrize("code", HARMLESS.values(), ids=HARMLESS.keys())
def test_allowed_names_do_nothing(code: bytes) -> None:
    value = machine.Machine().load(io.BytesIO(code))
    assert value == {} or isinstance(value, Inert | Function)


def test_no_allowed_name_is_a_live_object() -> None:
    """A pickle can only obtain descriptions and dtypes: calling each allowed name runs no code of its module."""
    for name in ALLOWED:
        module, attribute = name.split()
        code = f"c{module}\n{attribute}\n".encode()
        assert machine.Machine().load(io.BytesIO(code + b".")) is ALLOWED[name]
        with contextlib.suppress(ModelError):
            value = machine.Machine().load(io.BytesIO(code + b"(" + text(b"marker") + text(b"w") + b"tR."))
            assert value == {} or isinstance(value, Inert), name


CALLS: dict[str, bytes] = {
    "a number": b"\x80\x02K\x01)R.",
    "a storage type": b"\x80\x02ctorch\nFloatStorage\nK\x09\x85R.",
    "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "a parameter of no tensor": b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x89}\x87R.",
    "a size of a number": b"\x80\x02ctorch\nSize\nK\x01\x85R.",
    "arguments that are not a tuple": b"\x80\x02ctorch\nSize\nK\x01R.",
    "an OrderedDict of a number": b"ccollections\nOrderedDict\nK\x01\x85R.",
    "an OrderedDict of numbers": b"ccollections\nOrderedDict\n(lK\x01a\x85R.",
    "a Counter of a number": b"ccollections\nCounter\nK\x01\x85R.",
    "a defaultdict of items": b"ccollections\ndefaultdict\nK\x01}\x86R.",
    "a dtype": b"\x80\x02ctorch\nfloat16\n)R.",
    "a tensor that an allowed container makes": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\nctorch\nTensor\n(K\x01\x85t}tR."
    ),
    "a tensor with attributes of itself": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._tensor\n_rebuild_from_type_v2\nctorch\nTensor\n(tNtR."
    ),
    "a tensor of a dtype that is a name": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n(" + storage() + b"K\x00K\x01\x85K\x01\x85\x89}K\x07tR."
    ),
    "a tensor whose sizes are a number": rebuilt(b"K\x01", b"K\x01"),
    "a tensor of a number": rebuilt(b"K\x01\x85", b"K\x01\x85", of=b"K\x01"),
}


@pytest.mark.parametrize("code", CALLS.values(), ids=CALLS.keys())
def test_calls_are_of_known_functions_with_their_arguments(code: bytes) -> None:
    with pytest.raises(ModelError, match="calls"):
        machine.Machine().load(io.BytesIO(code))


TENSORS: dict[str, tuple[bytes, str]] = {
    "beyond the storage": (rebuilt(b"K\x05\x85", b"K\x01\x85"), "reaches beyond its storage"),
    "offset beyond it": (rebuilt(b"K\x04\x85", b"K\x01\x85", b"K\x01"), "reaches beyond its storage"),
    "stride beyond it": (rebuilt(b"K\x02\x85", b"K\x04\x85"), "reaches beyond its storage"),
    "expanded to a terabyte": (
        rebuilt(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"K\x00K\x00\x86"),
        "is expanded from a storage of 4 elements",
    ),
    "expanded a little beyond the limit": (
        rebuilt(b"J\x01\x00\x00\x04\x85", b"K\x00\x85"),  # 2**26 + 1
        "is expanded from a storage of 4 elements",
    ),
    "of another dtype, beyond the storage": (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n("
        + storage()
        + b"K\x00K\x03\x85K\x01\x85\x89}ctorch\nfloat64\ntR.",
        "reaches beyond its storage of 2 elements",
    ),
    "negative offset": (rebuilt(b"K\x01\x85", b"K\x01\x85", b"J\xff\xff\xff\xff"), "negative"),
    "negative size": (rebuilt(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "negative"),
    "negative stride": (rebuilt(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "negative"),
    "size of many digits": (rebuilt(b"\x8b\x00\x20\x00\x00" + b"\x01" * 0x2000 + b"\x85", b"K\x01\x85"), "negative"),
    "size that is true": (rebuilt(b"\x88\x85", b"K\x01\x85"), "not a number"),
    "more sizes than strides": (rebuilt(b"K\x01K\x01\x86", b"K\x01\x85"), "2 sizes and 1 strides"),
    "a hundred sizes": (rebuilt(b"(" + b"K\x01" * 100 + b"t", b"(" + b"K\x01" * 100 + b"t"), "100 sizes"),
    "storage of negative length": (storage(count=b"J\xff\xff\xff\xff") + b".", "impossible length"),
    "storage of endless length": (storage(count=b"\x8a\x10" + b"\x7f" * 16) + b".", "impossible length"),
    "storage of another type": (storage(kind=b"Size") + b".", "not a storage"),
    "a persistent number": (b"K\x01Q.", "not a storage"),
    "one storage, two lengths": (storage() + storage(count=b"K\x05") + b".", "in two ways"),
}


@pytest.mark.parametrize(("code", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_lie_within_their_storage(code: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        machine.Machine().load(io.BytesIO(code))


def test_views_of_legacy_storages_lie_within_them() -> None:
    def view(first: bytes, length: bytes) -> bytes:
        whole = storage()
        return whole[:-2] + b"X\x01\x00\x00\x00v" + first + length + b"\x87tQ."

    found = machine.Machine().load(io.BytesIO(view(b"K\x01", b"K\x03")))
    assert found == Storage("0", torch.float32, 1, 3)
    for first, length in ((b"K\x02", b"K\x03"), (b"J\xff\xff\xff\xff", b"K\x01"), (b"K\x00", b"J\xff\xff\xff\xff")):
        with pytest.raises(ModelError, match="outside the storage"):
            machine.Machine().load(io.BytesIO(view(first, length)))


DAMAGED: dict[str, bytes] = {
    "nothing": b"",
    "no end": b"\x80\x02K\x01",
    "an unknown instruction": b"\xff.",
    "an empty stack": b"\x80\x02.",
    "a pop of nothing": b"0.",
    "no mark": b"K\x01t.",
    "a tuple of too little": b"K\x01\x86.",
    "a memo that is not there": b"j\xff\xff\xff\x7f.",
    "a memo of nothing": b"q\x01.",
    "an odd dictionary": b"(K\x01d.",
    "a list as a key": b"}]K\x01s.",
    "a deep tuple as a key": b"}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "items of a number": b"K\x01K\x02K\x03s.",
    "elements of a number": b"K\x01K\x02a.",
    "a string longer than the file": b"X\xff\xff\xff\x7fabc.",
    "bytes longer than memory": b"\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "a negative length": b"T\xff\xff\xff\xffabc.",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a wide tuple as a key": b"}(" + b"K\x01" * 100 + b"tK\x01s.",
    "tuples that double as a key": b"}(K\x01t" + b"2\x86" * 30 + b"K\x01s.",
    "a number of ten thousand bits as a key": b"}\x8b\x00\x05\x00\x00" + b"\x01" * 1280 + b"K\x01s.",
    "a broken text": b"X\x02\x00\x00\x00\xff\xfe.",
}


@pytest.mark.parametrize("code", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_pickles_are_errors(code: bytes) -> None:
    with pytest.raises(ModelError, match=r"damaged|no end"):
        machine.Machine().load(io.BytesIO(code))


def test_a_memo_number_reserves_nothing() -> None:
    assert machine.Machine().load(io.BytesIO(b"K\x07r\xff\xff\xff\xff0j\xff\xff\xff\xff.")) == 7


def test_deep_nesting_does_not_recurse() -> None:
    value = machine.Machine().load(io.BytesIO(b"]" * 200_000 + b"a" * 199_999 + b"."))
    assert isinstance(value, list)


def test_endless_programs_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_STEPS", 1_000)
    with pytest.raises(ModelError, match="more than 1,000 steps"):
        machine.Machine().load(io.BytesIO(b"}" * 2_000 + b"."))
    # A list that is built once and copied many times costs its length each time.
    pairs = b"(l(" + b"(lK\x01aK\x02a" * 100 + b"e"
    copies = b"q\x00" + b"0ccollections\nOrderedDict\nh\x00\x85R" * 20
    with pytest.raises(ModelError, match="steps"):
        machine.Machine().load(io.BytesIO(pairs + copies + b"."))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # invalid escapes in random text instructions
def test_random_changes_never_crash(data: st.DataObject) -> None:
    code = bytearray(pickle.dumps({"a": [1, (2.0, "x")], "b": {3: None}}, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 6))):
        code[data.draw(st.integers(0, len(code) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelError):
        machine.Machine().load(io.BytesIO(bytes(code)))
