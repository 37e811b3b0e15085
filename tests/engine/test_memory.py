"""How much memory is free, and what is refused because it does not fit."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from sd_core.engine import memory
from sd_core.engine.memory import Memory, free_bytes, is_out_of_memory
from sd_core.layout.choose import bytes_to_pack, lay_out
from sd_core.models.layers import Linear

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with 1,000 free bytes, and an empty folder for the files of a container's limit."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    return tmp_path


def test_free_memory_is_limited_by_machine_and_container(free: Path) -> None:
    assert free_bytes(CPU) == 1000
    (free / "memory.max").write_text("max\n")
    (free / "memory.current").write_text("500\n")
    (free / "memory.stat").write_text("anon 300\ninactive_file 200\n")
    assert free_bytes(CPU) == 1000
    (free / "memory.max").write_text("900\n")
    assert free_bytes(CPU) == 900 - 500 + 200
    (free / "memory.max").write_text("90000\n")
    assert free_bytes(CPU) == 1000


@pytest.mark.usefixtures("free")
def test_a_forward_may_take_a_part_of_the_free_memory() -> None:
    assert Memory(CPU).usable() == 800


@pytest.mark.usefixtures("free")
def test_memory_for_weights_still_to_be_packed_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(Linear(10, 15))
    lay_out(network, CPU, torch.float32)
    if not bytes_to_pack(network):
        pytest.skip("this processor has no packed layout")
    assert bytes_to_pack(network) == 600
    waiting = Memory(CPU, lambda: (network,))
    assert waiting.usable() == 320
    monkeypatch.setattr(memory, "MIN_CHECKED", 0)
    with pytest.raises(MemoryError, match="are needed"):
        waiting.require(500)
    with torch.inference_mode():
        network(torch.zeros(1, 10))
    assert waiting.usable() == 800


def test_nothing_is_limited_if_free_memory_is_unknown() -> None:
    unknown = Memory(torch.device("mps"))
    assert free_bytes(unknown.device) is None
    assert unknown.usable() is None


@pytest.mark.usefixtures("free")
def test_a_cpu_refuses_what_does_not_fit_and_a_gpu_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MIN_CHECKED", 0)
    Memory(CPU).require(1000)
    with pytest.raises(MemoryError, match="are needed"):
        Memory(CPU).require(1001)
    Memory(torch.device("cuda")).require(1001)


@pytest.mark.usefixtures("free")
def test_small_forwards_are_not_checked() -> None:
    Memory(CPU).require(memory.MIN_CHECKED)


def test_memory_errors_are_distinguished_from_others() -> None:
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
