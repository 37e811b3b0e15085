"""Values that stand beside the weights: torch's safe loader accepts them, so they must not stop a conversion."""

import collections
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats import unpickle
from sd_core.formats.allowed import ALLOWED
from sd_core.formats.unpickle import read_checkpoint
from tests.support.checkpoints import FORMATS, same_tensor

Ckpt = Callable[..., Path]
WEIGHT = "first_stage_model.quant_conv.bias"


def with_attribute(tensor: Tensor) -> Tensor:
    tensor.note = "an attribute"
    return tensor


def quantized(dtype: torch.dtype) -> Tensor:
    return torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, dtype)


def per_channel() -> Tensor:
    return torch.quantize_per_channel(torch.zeros(2, 2), torch.ones(2), torch.zeros(2), 0, torch.quint8)


# Made when they are needed: making some of them warns.
TENSORS: dict[str, Callable[[], Tensor]] = {
    "parameter with an attribute": lambda: with_attribute(torch.nn.Parameter(torch.ones(2))),
    "tensor with an attribute": lambda: with_attribute(torch.ones(2)),
    "parameter of a buffer": lambda: torch.nn.Buffer(torch.ones(2)),
    "uint16": lambda: torch.arange(3).to(torch.uint16),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "complex32": lambda: torch.ones(2, dtype=torch.complex32),
    "expanded": lambda: torch.ones(1).expand(5),
    "bits": lambda: torch.zeros(2, dtype=torch.uint8).view(torch.bits8),
    "pairs of 4-bit floats": lambda: torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}
NOT_PLAIN: dict[str, tuple[Callable[[], object], str]] = {
    "quantized": (lambda: quantized(torch.qint8), "a quantized tensor"),
    "quantized to 32 bits": (lambda: quantized(torch.qint32), "a quantized tensor"),
    "quantized to pairs": (lambda: quantized(torch.quint4x2), "a quantized tensor"),
    "quantized per channel": (per_channel, "a quantized tensor"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "a sparse tensor"),
    "sparse rows": (lambda: torch.eye(2).to_sparse_csr(), "a sparse tensor"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "a nested tensor"),
    "meta": (lambda: torch.zeros(2, device="meta"), "a tensor without data"),
    "conjugated": (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "a conjugated or negated view"),
    "negated": (lambda: torch.zeros(2, dtype=torch.complex64).conj().imag, "a conjugated or negated view"),
    "numpy array": (lambda: np.arange(3.0), "a numpy array"),
}
VALUES: dict[str, Callable[[], object]] = {
    "set": lambda: {1, "a"},
    "empty set": set,
    "dtype": lambda: torch.float16,
    "every dtype": lambda: [torch.float8_e4m3fn, torch.bfloat16, torch.uint16, torch.uint4, torch.bits8, torch.qint8],
    "Counter": lambda: collections.Counter("abc"),
    "complex number": lambda: 1 + 2j,
    "bytes": lambda: b"ab",
    "bytearray": lambda: bytearray(b"ab"),
    "empty bytearray": bytearray,
    "size": lambda: torch.Size([1, 2]),
    "device": lambda: torch.device("cuda:0"),
    "layout": lambda: torch.sparse_coo,
    "quantization scheme": lambda: torch.per_tensor_affine,
    "tensor classes": lambda: [torch.FloatTensor, torch.Tensor],
    "storage": lambda: torch.zeros(2).untyped_storage(),
    "key of tuples": lambda: {(1, (2, "a")): 1},
    "tensor as a key": lambda: {torch.zeros(1): 1},
    "dtype as a key": lambda: {torch.float16: 1},
    "large number": lambda: 2**70,
}
# torch refuses these, but nothing in them can run, and A1111's checks let most of them pass.
MORE_VALUES: dict[str, Callable[[], object]] = {
    "frozenset": lambda: frozenset({1}),
    "empty bytes": lambda: b"",
    "defaultdict": lambda: collections.defaultdict(int, a=1),
    "defaultdict of lists": lambda: collections.defaultdict(list),
    "deque": lambda: collections.deque([1]),
    "classes": lambda: [int, float, str, dict, list, tuple, bool],
    "range and slice": lambda: [range(3), slice(1, 2)],
    "array of objects": lambda: np.array(["a", None], dtype=object),
    "array by columns": lambda: np.asfortranarray(np.ones((2, 2))),
    "numpy scalars": lambda: [np.float32(1), np.int64(1), np.bool_(True)],
    "numpy dtypes": lambda: [np.dtype("f4"), np.dtype([("a", "f4")]), np.float32],
    "ParameterDict": lambda: torch.nn.ParameterDict({"a": torch.ones(1)}),
    "ParameterList": lambda: torch.nn.ParameterList([torch.ones(1)]),
}
SAFE = TENSORS | {name: make for name, (make, _) in NOT_PLAIN.items() if name != "numpy array"} | VALUES

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # sparse, nested, quantized: "in beta", "deprecated"
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("name", SAFE)
def test_what_torchs_safe_loader_accepts_is_accepted_with_equal_tensors(ckpt: Ckpt, name: str) -> None:
    path = ckpt({"weight": torch.ones(3), "value": SAFE[name]()})
    expected = torch.load(path, weights_only=True)
    with read_checkpoint(path) as file:
        assert "weight" in file.tensors
        assert ("value" in file.tensors) == (name in TENSORS)
        for key in file.tensors:
            assert same_tensor(file.read(key), expected[key])


@FORMATS
@pytest.mark.parametrize("name", SAFE | MORE_VALUES)
def test_values_beside_a_state_dict_are_accepted(ckpt: Ckpt, zipped: bool, name: str) -> None:
    value = (SAFE | MORE_VALUES)[name]()
    path = ckpt({"state_dict": {WEIGHT: torch.ones(3), "value": value}, "other": [value]}, zipped=zipped)
    with read_checkpoint(path) as file:
        assert file.read(WEIGHT).tolist() == [1, 1, 1]


def test_every_name_that_torchs_safe_loader_allows_is_allowed() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals  # it has no public list

    names = {" ".join(name.rsplit(".", 1)) for name in _get_allowed_globals()}
    assert len(names) > 100
    assert names - ALLOWED.keys() == set()


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_weight_that_is_not_a_plain_tensor_is_named(ckpt: Ckpt, name: str) -> None:
    make, what = NOT_PLAIN[name]
    with pytest.raises(ModelError, match=rf"first_stage_model\.quant_conv\.bias is {what}"):
        read_checkpoint(ckpt({"state_dict": {WEIGHT: make(), "other": torch.ones(1)}}))


def test_markers_are_found_beside_a_nested_state_dict(ckpt: Ckpt) -> None:
    path = ckpt({"state_dict": {WEIGHT: torch.ones(3)}, "v_pred": torch.tensor([]), "other": torch.ones(1)})
    with read_checkpoint(path) as file:
        assert set(file.tensors) == {WEIGHT, "v_pred"}


def test_a_state_dict_of_another_mapping_type_is_read(ckpt: Ckpt) -> None:
    weights = {WEIGHT: torch.ones(3)}
    for state in (collections.defaultdict(list, weights), collections.Counter(weights), copy.copy(weights)):
        with read_checkpoint(ckpt({"state_dict": state})) as file:
            assert set(file.tensors) == {WEIGHT}


def test_shared_dictionaries_do_not_multiply(ckpt: Ckpt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MAX_ENTRIES", 1_000)
    shared = {str(number): number for number in range(100)}
    with read_checkpoint(ckpt({"a": torch.ones(1)} | {f"d{n}": shared for n in range(10)})) as file:
        assert set(file.tensors) == {"a"}
    with pytest.raises(ModelError, match="more than 1,000 entries"):
        read_checkpoint(ckpt({"a": torch.ones(1)} | {f"d{n}": shared for n in range(11)}))


def test_endless_names_are_refused(ckpt: Ckpt) -> None:
    for state in ({"x" * 1_001: torch.ones(1)}, {"a" * 600: {"b" * 600: torch.ones(1)}}):
        with pytest.raises(ModelError, match=r"a name of 1,\d+ characters"):
            read_checkpoint(ckpt(state))
    with read_checkpoint(ckpt({"a": torch.ones(1), "x" * 2_000: "not a tensor"})) as file:
        assert set(file.tensors) == {"a"}
