"""How work shares a forward, and what happens when a forward fails, shown on networks that compute almost nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.engine import memory
from sd_core.engine.memory import Memory, is_out_of_memory
from sd_core.engine.runner import Runner, Tiled
from sd_core.models.unet import Contexts
from sd_core.models.vae import TILE
from sd_core.work import Decode, Encode, UNetRows, Work

Check = Callable[[Tensor, Tensor], None]


@dataclass
class RecordingUNet:
    """Answers row by row, so that an answer given to the wrong row is seen, and remembers each forward's rows."""

    check: Check = lambda _latents, _rows: None
    rows: list[int] = field(default_factory=list)
    reads: int = 0

    def read(self, context: Tensor, rows: Tensor | None = None) -> Contexts:
        self.reads += 1
        return Contexts(((context, context),), rows)

    def __call__(self, x: Tensor, timesteps: Tensor, contexts: Contexts) -> Tensor:
        context = contexts.read[0][0]
        self.rows.append(len(context))
        self.check(x, context)
        assert timesteps.dtype == torch.float32
        x, timesteps = contexts.spread(x, len(context)), contexts.spread(timesteps, len(context))
        return x * 2 + timesteps[:, None, None, None] + context.sum(dim=(1, 2))[:, None, None, None]


@dataclass
class RecordingVAE:
    batches: list[int] = field(default_factory=list)

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        return pixels[:, :1, ::8, ::8] + noise

    def decode(self, latents: Tensor) -> Tensor:
        self.batches.append(len(latents))
        return latents * 3


class FullVAE:
    """Has memory for tiles alone."""

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        raise MemoryError

    def decode(self, latents: Tensor) -> Tensor:
        raise MemoryError

    def encode_tiled(self, pixels: Tensor, noise: Tensor) -> Tensor:
        return noise + 1

    def decode_tiled(self, latents: Tensor) -> Tensor:
        return latents * 3


def runner_of(unet: RecordingUNet, vae: RecordingVAE | FullVAE | None = None, bytes_a_pixel: float = 0) -> Runner:
    model: Any = SimpleNamespace(networks=SimpleNamespace(unet=unet, vae=vae), device=torch.device("cpu"))
    return Runner(model, Memory(model.device, dict.fromkeys((UNetRows, Encode, Decode), bytes_a_pixel)))


def rows(seed: int, timestep: float, contexts: int) -> UNetRows:
    generator = torch.Generator().manual_seed(seed)
    return UNetRows(
        torch.randn(1, 4, 3, 5, generator=generator), timestep, torch.randn(contexts, 7, 2, generator=generator)
    )


def answer_alone(work: UNetRows) -> Tensor:
    (answer,), held = runner_of(RecordingUNet()).run([work])
    assert held and isinstance(answer, Tensor)
    return answer


def test_rows_of_all_pictures_go_through_one_forward() -> None:
    unet = RecordingUNet()
    works = [rows(1, 10.5, 2), rows(2, 999.0, 1), rows(3, 1.0, 3)]
    answers, held = runner_of(unet).run(works)
    assert unet.rows == [6] and held
    for work, answer in zip(works, answers, strict=True):
        assert torch.equal(answer, answer_alone(work))


def test_the_vae_decodes_pictures_together_and_encodes_a_shared_one_once() -> None:
    vae = RecordingVAE()
    runner = runner_of(RecordingUNet(), vae)
    decodes = [Decode(torch.randn(1, 4, 3, 5)) for _ in range(2)]
    for decode, answer in zip(decodes, runner.run(decodes)[0], strict=True):
        assert torch.equal(answer, decode.latents * 3)
    shared = torch.randn(1, 3, 24, 40)
    encodes = [Encode(shared, torch.randn(1, 1, 3, 5)) for _ in range(3)]
    for encode, answer in zip(encodes, runner.run(encodes)[0], strict=True):
        assert torch.equal(answer, encode.pixels[:, :1, ::8, ::8] + encode.noise)
    assert vae.batches == [2, 1]


def test_prompts_are_read_once_for_as_long_as_the_batch_stays() -> None:
    unet = RecordingUNet()
    runner, first, second = runner_of(unet), rows(1, 10.0, 2), rows(2, 20.0, 1)
    for _ in range(3):
        runner.run([first, second])
    assert unet.reads == 1
    (answer,), _ = runner.run([second])
    assert unet.reads == 2 and torch.equal(answer, answer_alone(second))
    runner.run([first, second])
    assert unet.reads == 2


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_without_memory_for_all_the_halves_run(failure: Exception) -> None:
    def at_most_three(_latents: Tensor, context: Tensor) -> None:
        if len(context) > 3:
            raise failure

    unet = RecordingUNet(at_most_three)
    works = [rows(seed, float(seed), 2 if seed else 1) for seed in range(4)]
    answers, held = runner_of(unet).run(works)
    assert not held
    assert unet.rows == [7, 3, 4, 2, 2]
    for work, answer in zip(works, answers, strict=True):
        assert torch.equal(answer, answer_alone(work))


def test_a_picture_whose_rows_do_not_fit_together_runs_row_by_row() -> None:
    def one(_latents: Tensor, context: Tensor) -> None:
        if len(context) > 1:
            raise MemoryError

    unet, work = RecordingUNet(one), rows(1, 5.0, 2)
    (answer,), held = runner_of(unet).run([work])
    assert not held and unet.rows == [2, 1, 1]
    assert torch.equal(answer, answer_alone(work))


def test_without_memory_for_a_large_picture_the_vae_takes_its_tiles() -> None:
    runner, large, small = runner_of(RecordingUNet(), FullVAE()), torch.randn(1, 4, 65, 64), torch.randn(1, 4, 64, 64)
    (answer,), held = runner.run([Decode(large)])
    assert not held
    assert isinstance(answer, Tiled) and torch.equal(answer.tensor, large * 3)
    (answer,), _ = runner.run([Decode(small)])
    assert isinstance(answer, MemoryError), "one tile is no less than the whole"
    pixels = torch.empty(1, 3, 520, 512)
    (answer,), _ = runner.run([Encode(pixels, large)])
    assert isinstance(answer, Tiled) and torch.equal(answer.tensor, large + 1)


def test_what_memory_is_known_not_to_hold_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 100 * memory.SURE)
    unet = RecordingUNet()
    runner = runner_of(unet, FullVAE(), bytes_a_pixel=20 * memory.SURE / 64)
    works = [UNetRows(torch.zeros(1, 4, 1, 1), 1.0, torch.zeros(2, 3, 8)) for _ in range(4)]
    _, held = runner.run(works)
    assert not held and unet.rows == [4, 4]
    (answer,), _ = runner.run([UNetRows(torch.zeros(1, 4, 2, 2), 1.0, torch.zeros(2, 3, 8))])
    assert unet.rows == [4, 4, 1, 1] and isinstance(answer, Tensor)
    (answer,), _ = runner.run([UNetRows(torch.zeros(1, 4, 3, 2), 1.0, torch.zeros(1, 3, 8))])
    assert len(unet.rows) == 4 and isinstance(answer, MemoryError)
    large = Decode(torch.zeros(1, 4, TILE + 1, TILE))
    (answer,), _ = runner.run([large])
    assert isinstance(answer, MemoryError), "nor are tiles that it does not hold"
    roomy = runner_of(unet, FullVAE(), bytes_a_pixel=100 * memory.SURE / (64 * TILE * TILE))
    (answer,), _ = roomy.run([large])
    assert isinstance(answer, Tiled)


def test_a_gpu_that_answers_nothing_any_more_is_told_from_a_forward_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Tensor) -> None:
        raise ZeroDivisionError

    def lost(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    runner = runner_of(RecordingUNet(fail))
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    assert [type(answer) for answer in runner.run([rows(1, 1.0, 1)])[0]] == [ZeroDivisionError]
    monkeypatch.setattr(runner, "_device", torch.device("cuda"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runner.run([rows(1, 1.0, 1)])


def test_only_what_cannot_run_alone_fails() -> None:
    works: list[Work] = [rows(seed, float(seed), 2) for seed in range(5)]
    poison = works[3]
    assert isinstance(poison, UNetRows)

    def refuse(latents: Tensor, _context: Tensor) -> None:
        if any(torch.equal(row, poison.latents[0]) for row in latents):
            raise ZeroDivisionError("that one")

    answers, held = runner_of(RecordingUNet(refuse)).run(works)
    assert held
    assert [type(answer) for answer in answers] == [Tensor, Tensor, Tensor, ZeroDivisionError, Tensor]


def test_a_row_that_finds_no_memory_alone_fails_with_the_error_it_met() -> None:
    def never(_latents: Tensor, _context: Tensor) -> None:
        raise MemoryError("none left")

    answers, held = runner_of(RecordingUNet(never)).run([rows(1, 1.0, 2), rows(2, 1.0, 1)])
    assert not held
    assert all(isinstance(answer, MemoryError) and is_out_of_memory(answer) for answer in answers)
