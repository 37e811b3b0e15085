"""How work of many pictures shares forwards, shown on small networks with random weights."""

from collections.abc import Generator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sd_core.contracts import Decode, Encode, UNetRows, Work
from sd_core.engine.runner import Runner, drive


class RecordingUNet(nn.Module):
    """Answers row-wise, so that an answer given to the wrong row is seen, and remembers each forward's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        self.rows.append(len(x))
        assert timesteps.dtype == torch.float32
        return x * 2 + timesteps[:, None, None, None] + context.sum(dim=(1, 2))[:, None, None, None]


class RecordingVAE:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        return pixels[:, :1, ::8, ::8] + noise

    def decode(self, latents: Tensor) -> Tensor:
        self.batches.append(len(latents))
        return latents * 3


CPU = torch.device("cpu")


@dataclass
class FakeModel:
    networks: Any
    device: torch.device = CPU


@pytest.fixture
def unet() -> RecordingUNet:
    return RecordingUNet()


@pytest.fixture
def vae() -> RecordingVAE:
    return RecordingVAE()


def runner_of(unet: RecordingUNet, vae: RecordingVAE, max_batch: int) -> Runner:
    model: Any = FakeModel(SimpleNamespace(unet=unet, vae=vae))
    return Runner(model, max_batch)


def rows(seed: int, timestep: float, contexts: int, size: tuple[int, int] = (3, 5)) -> UNetRows:
    generator = torch.Generator().manual_seed(seed)
    return UNetRows(
        torch.randn(1, 4, *size, generator=generator), timestep, torch.randn(contexts, 7, 2, generator=generator)
    )


def answer_alone(unet: RecordingUNet, work: UNetRows) -> Tensor:
    count = len(work.context)
    return unet(work.latents.repeat(count, 1, 1, 1), torch.full((count,), work.timestep), work.context)


def test_each_work_gets_its_own_answer_whatever_it_is_stacked_with(unet: RecordingUNet, vae: RecordingVAE) -> None:
    works: list[Work] = [
        rows(1, 10.5, 2),
        Decode(torch.randn(1, 4, 3, 5)),
        rows(2, 999.0, 1),
        rows(3, 0.0, 2, size=(4, 4)),
        Encode(torch.randn(1, 3, 24, 40), torch.randn(1, 1, 3, 5)),
        rows(4, 1.0, 3),
    ]
    answers, seconds = runner_of(unet, vae, max_batch=8).run(works)
    assert unet.rows == [6, 2]  # one forward a latent shape
    assert set(seconds) == {"denoise", "encode", "decode"}
    for work, answer in zip(works, answers, strict=True):
        match work:
            case UNetRows():
                assert torch.equal(answer, answer_alone(unet, work))
            case Decode(latents=latents):
                assert torch.equal(answer, latents * 3)
            case Encode(pixels=pixels, noise=noise):
                assert torch.equal(answer, vae.encode(pixels, noise))


def test_a_forward_holds_at_most_max_batch_pictures(unet: RecordingUNet, vae: RecordingVAE) -> None:
    works: list[Work] = [rows(seed, float(seed), 2) for seed in range(5)]
    answers, _ = runner_of(unet, vae, max_batch=2).run(works)
    assert unet.rows == [4, 4, 2]
    for work, answer in zip(works, answers, strict=True):
        assert isinstance(work, UNetRows)
        assert torch.equal(answer, answer_alone(unet, work))


def counting_picture(asks: int, closed: list[int]) -> Generator[Work, Tensor, Tensor]:
    total = torch.zeros(1)
    try:
        for index in range(asks):
            total = total + (yield rows(index, float(index), 1)).sum()
        return total
    finally:
        closed.append(asks)


def test_pictures_of_different_lengths_are_driven_together(unet: RecordingUNet, vae: RecordingVAE) -> None:
    together, _ = drive([counting_picture(n, []) for n in (3, 1, 2)], runner_of(unet, vae, 8))
    assert unet.rows == [3, 2, 1]
    alone = [drive([counting_picture(n, [])], runner_of(unet, vae, 8))[0][0] for n in (3, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_an_error_closes_every_picture(unet: RecordingUNet, vae: RecordingVAE) -> None:
    ticks, closed = iter(range(10)), list[int]()

    def stop_at_third_tick() -> None:
        if next(ticks) == 2:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        drive([counting_picture(5, closed), counting_picture(6, closed)], runner_of(unet, vae, 8), stop_at_third_tick)
    assert sorted(closed) == [5, 6]
