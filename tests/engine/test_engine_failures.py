"""The engine when something fails: memory, a network, an observer, the device, the engine's thread itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_core.engine.engine import Engine
from sd_core.engine.kinds.vae import TILED
from sd_core.engine.memory import Memory
from sd_core.engine.runner import Runner
from sd_core.engine.scheduler import Running, Scheduler
from sd_core.errors import Broken, OutOfMemory
from sd_core.models.given import Given
from sd_core.models.unet import UNet
from sd_core.models.vae import TILE, VAE
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Progress
from tests.support.engine import SMALL_REQUEST
from tests.support.pictures import levels_apart


def test_a_failed_observer_fails_only_its_own_job(engine: Engine) -> None:
    def fail(_progress: Progress) -> None:
        raise ZeroDivisionError("observer")

    bad, good = engine.submit(SMALL_REQUEST, fail), engine.submit(SMALL_REQUEST)
    with pytest.raises(ZeroDivisionError, match="observer"):
        bad.result()
    assert good.result().images


def test_a_memory_error_says_what_to_do_and_the_engine_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: UNet, *arguments: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", fail)
        with pytest.raises(OutOfMemory, match="2 x 64x64 pixels; ask for fewer or smaller"):
            engine.submit(replace(SMALL_REQUEST, num_images=2)).result()
    assert engine.submit(SMALL_REQUEST).result().images


@pytest.mark.slow
def test_if_one_image_at_a_time_fits_all_are_generated(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, sizes = UNet.forward, list[int]()

    def small(self: UNet, x: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, timesteps, given)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", small)
        images = engine.submit(replace(SMALL_REQUEST, num_images=4)).result().images
    assert sizes.count(4) == 1  # the scheduler makes smaller batches from then on
    for image, whole in zip(images, engine.submit(replace(SMALL_REQUEST, num_images=4)).result().images, strict=True):
        assert levels_apart(image, whole) <= 1


def test_other_errors_reach_the_caller_unchanged(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: UNet, *arguments: object) -> Tensor:
        raise ZeroDivisionError("shape")

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", fail)
        with pytest.raises(ZeroDivisionError, match="shape"):
            engine.submit(SMALL_REQUEST).result()
    assert engine.submit(SMALL_REQUEST).result().images


def test_if_the_engine_thread_fails_every_job_fails(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Scheduler) -> list[Running]:
        raise LookupError("scheduler")

    monkeypatch.setattr(Scheduler, "next_batch", fail)
    failures: list[Exception] = []
    engine = Engine([tiny_model], max_batch=4, on_failure=failures.append)
    assert engine.failure is None
    with pytest.raises(LookupError, match="scheduler"):
        engine.submit(SMALL_REQUEST).result(60)
    with pytest.raises(Broken, match="engine has failed"):
        engine.submit(SMALL_REQUEST)
    engine.close()
    assert failures == [engine.failure]


@pytest.mark.parametrize("when", ["preparing", "running"])
def test_if_the_device_is_lost_every_job_fails(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    def lost(_runner: Runner) -> None:
        raise LookupError("the device is lost")

    where, what = {"preparing": (Memory, "usable"), "running": (UNet, "forward")}[when]
    engine = Engine([tiny_model], max_batch=4)
    monkeypatch.setattr(where, what, fail)
    with pytest.raises(ZeroDivisionError):
        engine.submit(SMALL_REQUEST).result(60)
    monkeypatch.setattr(Runner, "require_device", lost)
    with pytest.raises((ZeroDivisionError, LookupError)):
        engine.submit(SMALL_REQUEST).result(60)
    engine.close()
    assert isinstance(engine.failure, LookupError)


def test_an_image_decoded_in_tiles_has_a_warning(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(SMALL_REQUEST, width=8 * (TILE + 8), steps=1)
    whole, decode = engine.submit(request).result(), VAE.decode

    def for_a_tile(self: VAE, latents: torch.Tensor, **named: Any) -> torch.Tensor:
        if latents.shape[3] > TILE:
            raise torch.OutOfMemoryError
        return decode(self, latents, **named)

    monkeypatch.setattr(VAE, "decode", for_a_tile)
    parts = engine.submit(request).result()
    assert whole.warnings == [] and parts.warnings == [TILED.format("decode")]
    assert parts.images[0].shape == whole.images[0].shape
    assert np.corrcoef(parts.images[0].ravel(), whole.images[0].ravel())[0, 1] > 0.9
