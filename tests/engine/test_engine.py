"""The drawing thread: futures, cancellation, errors, and pictures that do not depend on their company."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sd_core.contracts import GenerationRequest, OutOfMemory, Work
from sd_core.engine.engine import Engine
from sd_core.engine.runner import Runner
from sd_core.pipeline.model import StableDiffusion

REQUEST = GenerationRequest("a cat", seed=3, width=64, height=64, steps=3, sampler="euler_a", schedule="default")


@pytest.fixture
def engine(tiny_model: StableDiffusion) -> Iterator[Engine]:
    engine = Engine(tiny_model, max_batch=4)
    yield engine
    engine.close()


def levels_apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_a_job_ends_in_pictures_seeds_and_timings(engine: Engine) -> None:
    result = engine.submit(replace(REQUEST, width=72, num_images=2)).result()
    assert [image.shape for image in result.images] == [(64, 72, 3)] * 2
    assert result.images[0].dtype == np.uint8
    assert result.seeds == [3, 4]
    assert set(result.timings_ms) == {"queue", "encode", "denoise", "decode"}
    assert all(spent >= 0 for spent in result.timings_ms.values())
    assert result.timings_ms["denoise"] > 0


def test_each_picture_of_a_batch_is_its_seeds_own(engine: Engine) -> None:
    together = engine.submit(replace(REQUEST, num_images=5)).result()
    for image, seed in zip(together.images, together.seeds, strict=True):
        alone = engine.submit(replace(REQUEST, seed=seed)).result().images[0]
        assert levels_apart(image, alone) <= 1
    assert levels_apart(together.images[0], together.images[1]) > 20


def test_the_same_request_draws_the_same_picture(engine: Engine) -> None:
    first, again = (engine.submit(REQUEST).result().images[0] for _ in range(2))
    assert np.array_equal(first, again)


def test_cancelling_ends_a_job_while_it_is_drawn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards, begun, go_on = [0], threading.Event(), threading.Event()
    run = Runner.run

    def slow_run(self: Runner, works: list[Work]) -> object:
        forwards[0] += 1
        begun.set()
        go_on.wait(60)
        return run(self, works)

    monkeypatch.setattr(Runner, "run", slow_run)
    future = engine.submit(replace(REQUEST, steps=150))
    waiting = engine.submit(REQUEST)
    assert begun.wait(60)
    assert future.cancel()
    assert waiting.cancel()
    go_on.set()
    monkeypatch.setattr(Runner, "run", run)
    assert engine.submit(REQUEST).result().images
    assert future.cancelled()
    assert forwards[0] == 1


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_memory_errors_say_what_to_do_and_the_engine_lives_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(self: Runner, works: list[Work]) -> object:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", fail)
        with pytest.raises(OutOfMemory, match="2 x 64x64 pixels; ask for fewer or smaller"):
            engine.submit(replace(REQUEST, num_images=2)).result()
    assert engine.submit(REQUEST).result().images


def test_other_errors_reach_the_asker_unchanged(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Runner, works: list[Work]) -> object:
        raise ZeroDivisionError("shape")

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run", fail)
        with pytest.raises(ZeroDivisionError, match="shape"):
            engine.submit(REQUEST).result()
    assert engine.submit(REQUEST).result().images


def test_close_draws_what_was_submitted_before(tiny_model: StableDiffusion) -> None:
    engine = Engine(tiny_model, max_batch=4)
    futures = [engine.submit(replace(REQUEST, seed=seed)) for seed in range(3)]
    engine.close()
    assert all(future.done() and future.result().images for future in futures)


def test_warming_up_draws_with_a_small_model(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[GenerationRequest] = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda request: (drawn.append(request), submit(request))[1])
    engine.warm_up()
    assert [(request.width, request.height) for request in drawn] == [(64, 64)]


def test_warming_up_a_large_model_on_a_cpu_only_reads_a_prompt(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(replace(tiny_model, info=replace(tiny_model.info, native_size=512)), max_batch=4)
    monkeypatch.setattr(engine, "submit", lambda request: pytest.fail("a full-size picture was drawn"))
    engine.warm_up()
    engine.close()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same(
    tiny_model: StableDiffusion, tiny_checkpoint: Path, engine: Engine, dtype: str
) -> None:
    half = Engine(StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cpu", dtype), max_batch=4)
    assert half.model.networks.unet.dtype != torch.float32
    request = replace(REQUEST, steps=4, sampler="dpmpp_2m")
    exact, rough = (side.submit(request).result().images[0].astype(float) for side in (engine, half))
    half.close()
    assert 10 * np.log10(255**2 / np.square(exact - rough).mean()) > 25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_cpus_picture(tiny_checkpoint: Path, engine: Engine) -> None:
    gpu = Engine(StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cuda", "fp32"), max_batch=4)
    gpu.warm_up()
    ours, theirs = (side.submit(REQUEST).result().images[0].astype(float) for side in (engine, gpu))
    gpu.close()
    assert 10 * np.log10(255**2 / max(np.square(ours - theirs).mean(), 1e-9)) > 35
