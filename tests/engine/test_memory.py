"""What forwards are counted to need beside what they hold, and what is free."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from bench.memory import KINDS, peak_and_counted
from sd_core.engine import memory
from sd_core.engine.memory import Memory, free_bytes, pixels_of
from sd_core.layout import onednn
from sd_core.layout.choose import lay_out
from sd_core.models.layers import Linear
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Decode, Encode, UNetRows

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with 1,000 bytes free and a folder for a container's limit, which is not there yet."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [16, 24])
def test_a_forward_holds_no_more_than_is_counted(tiny_model: StableDiffusion, kind: str, side: int) -> None:
    measured = peak_and_counted(tiny_model, kind, side)
    assert 0.3 * measured["counted_mb"] < measured["peak_mb"] < measured["counted_mb"]


def test_free_memory_is_what_the_machine_and_the_container_leave(free: Path) -> None:
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
def test_room_is_the_usable_part_of_it() -> None:
    assert Memory(CPU, {UNetRows: 2.0, Decode: 8.0}).room() == {UNetRows: 400, Decode: 100}


@pytest.mark.usefixtures("free")
def test_weights_still_to_be_packed_take_their_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: True)
    network = nn.Sequential(Linear(10, 15))
    lay_out(network, CPU, torch.float32)
    waiting = Memory(CPU, {Decode: 8.0}, (network,))
    assert waiting.room() == {Decode: 40}
    monkeypatch.setattr(memory, "SURE", 0)
    with pytest.raises(MemoryError, match="are needed"):
        waiting.require([Decode(torch.empty(1, 4, 1, 1))])
    assert Memory(CPU, {Decode: 8.0}, (Linear(1000, 1000), network)).room() == {Decode: 40}


def test_where_nobody_knows_what_is_free_nothing_is_limited() -> None:
    unknown = Memory(torch.device("mps"), {UNetRows: 2.0})
    assert free_bytes(unknown.device) is None
    assert unknown.room() == {}


def test_pixels_are_counted_with_rows() -> None:
    latents = torch.empty(1, 4, 3, 5)
    assert pixels_of(UNetRows(latents, 1.0, torch.empty(2, 77, 8))) == 2 * 24 * 40
    assert pixels_of(Decode(latents)) == pixels_of(Encode(torch.empty(1, 3, 24, 40), latents)) == 24 * 40


@pytest.mark.usefixtures("free")
def test_a_cpu_refuses_what_it_lacks_and_a_gpu_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SURE", 0)
    work = Decode(torch.empty(1, 4, 1, 1))
    Memory(CPU, {Decode: 10.0}).require([work])
    with pytest.raises(MemoryError, match="are needed"):
        Memory(CPU, {Decode: 10.0}).require([work, work])
    Memory(torch.device("cuda"), {Decode: 10.0}).require([work, work])


@pytest.mark.usefixtures("free")
def test_little_is_had_without_asking() -> None:
    Memory(CPU, {Decode: 10_000.0}).require([Decode(torch.empty(1, 4, 1, 1))])
