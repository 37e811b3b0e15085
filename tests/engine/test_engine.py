"""The drawing thread: futures, cancellation, errors, and pictures that do not depend on their company."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sd_core.engine.engine import Engine
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.kinds.vae import TILED
from sd_core.engine.memory import Memory
from sd_core.engine.runner import Runner
from sd_core.engine.scheduler import Running, Scheduler
from sd_core.errors import Broken, Busy, OutOfMemory
from sd_core.models.given import Given
from sd_core.models.unet import UNet
from sd_core.models.vae import TILE, VAE
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run
from sd_core.request import Progress, Request
from sd_core.sampling.registry import SOLVERS

REQUEST = Request("a cat", seed=3, width=64, height=64, steps=3, sampler="euler_a", schedule="default")


@pytest.fixture
def engine(tiny_model: StableDiffusion) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=4)
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


NOISES = [
    replace(REQUEST, sampler="dpmpp_sde", schedule="karras", steps=4),
    replace(REQUEST, sampler="dpmpp_3m_sde", schedule="exponential", steps=6),
    replace(REQUEST, rng="nv", steps=6),
    replace(REQUEST, rng="nv", sampler="dpmpp_2m_sde", eta_noise_seed_delta=31337),
    replace(REQUEST, variation_seed=8, variation_strength=0.4),
]


def test_noise_does_not_depend_on_the_neighbours(engine: Engine) -> None:
    alone = [engine.submit(request).result().images[0] for request in NOISES]
    futures = [engine.submit(request) for request in NOISES]
    for future, expected in zip(futures, alone, strict=True):
        assert levels_apart(future.result().images[0], expected) <= 1


def test_every_way_to_change_the_noise_changes_the_picture(engine: Engine) -> None:
    ways = [{}, {"rng": "nv"}, {"eta_noise_seed_delta": 1}, {"variation_seed": 8, "variation_strength": 0.4}]
    ways += [{"eta": 0.3}, {"s_noise": 1.2}]
    pictures = [engine.submit(replace(REQUEST, **way)).result().images[0] for way in ways]
    apart = [levels_apart(one, other) for one, other in itertools.combinations(pictures, 2)]
    assert min(apart) > 1, apart


def test_variations_of_one_seed_count_the_variation_seed_up(engine: Engine) -> None:
    request = replace(REQUEST, variation_seed=8, variation_strength=0.4)
    together = engine.submit(replace(request, num_images=2)).result()
    assert together.seeds == [3, 3]
    for image, variation_seed in zip(together.images, (8, 9), strict=True):
        alone = engine.submit(replace(request, variation_seed=variation_seed)).result().images[0]
        assert levels_apart(image, alone) <= 1


def test_image_to_image_follows_the_path_of_the_whole_schedule(engine: Engine) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    request = replace(REQUEST, sampler="dpmpp_2m_sde", schedule="karras", steps=5, image=picture, strength=0.6)
    spans = [request.steps, 5 * request.steps]
    noises = [Run.of(replace(request, steps=steps)).span(engine.models["tiny"]) for steps in spans]
    assert noises[0] == pytest.approx((0.0291675, 14.614641), rel=1e-4) and noises[0] == noises[1]
    assert engine.submit(request).result().images


def test_the_same_request_draws_the_same_picture(engine: Engine) -> None:
    first, again = (engine.submit(REQUEST).result().images[0] for _ in range(2))
    assert np.array_equal(first, again)


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, list[int]]]:
    """The first forward ends when this does: meanwhile jobs arrive. Gives what it sets, and all forwards' sizes."""
    begun, go_on, sizes = threading.Event(), threading.Event(), list[int]()
    run = Runner.run

    def waiting(self: Runner, kind: Kind[Any], works: Sequence[Any]) -> object:
        sizes.append(len(works))
        begun.set()
        go_on.wait(60)
        return run(self, kind, works)

    monkeypatch.setattr(Runner, "run", waiting)
    yield begun, sizes
    go_on.set()


def test_cancelling_ends_a_job_while_it_is_drawn(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with held_up(monkeypatch) as (begun, sizes):
        future = engine.submit(replace(REQUEST, steps=150))
        waiting = engine.submit(REQUEST)
        assert begun.wait(60)
        assert future.cancel()
        assert waiting.cancel()
    assert engine.submit(REQUEST).result().images
    assert future.cancelled()
    assert len(sizes) == 1 + 1 + 3 + 1  # the first, and the prompts, steps and decoding of the last job


def test_a_job_that_arrives_joins_the_next_forward(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(REQUEST, seed=9, steps=2, sampler="dpmpp_2m", scale=1.0)
    with held_up(monkeypatch) as (begun, sizes):
        first = engine.submit(REQUEST)
        assert begun.wait(60)
        second = engine.submit(other)
    for future, request in ((first, REQUEST), (second, other)):
        assert levels_apart(future.result().images[0], engine.submit(request).result().images[0]) <= 1
    assert max(sizes) == 2


def test_more_jobs_than_are_held_are_refused(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine([tiny_model], max_batch=1, max_jobs=2)
    with held_up(monkeypatch):
        futures = [engine.submit(REQUEST), engine.submit(REQUEST)]
        with pytest.raises(Busy, match="the engine's queue is full: 2 jobs"):
            engine.submit(REQUEST)
        assert futures[1].cancel()
        futures.append(engine.submit(REQUEST))
    assert futures[0].result().images and futures[2].result().images
    engine.close()
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(REQUEST)


def test_steps_are_told_as_they_are_done(engine: Engine) -> None:
    told: list[Progress] = []
    engine.submit(replace(REQUEST, num_images=2), told.append).result()
    assert [(progress.step, progress.steps, progress.percent) for progress in told] == [
        (1, 3, 33),
        (2, 3, 66),
        (3, 3, 100),
    ]
    assert [progress.preview().shape for progress in told] == [(8, 8, 3)] * 3
    short: list[Progress] = []
    picture = np.zeros((64, 64, 3), np.uint8)
    engine.submit(replace(REQUEST, steps=10, image=picture, strength=0.25, sampler="heun"), short.append).result()
    assert [(progress.step, progress.steps, progress.percent) for progress in short] == [(1, 2, 66), (2, 2, 100)]


def test_an_observer_that_fails_fails_its_own_job_alone(engine: Engine) -> None:
    def fail(_progress: Progress) -> None:
        raise ZeroDivisionError("observer")

    bad, good = engine.submit(REQUEST, fail), engine.submit(REQUEST)
    with pytest.raises(ZeroDivisionError, match="observer"):
        bad.result()
    assert good.result().images


def test_memory_errors_say_what_to_do_and_the_engine_lives_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: UNet, *arguments: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", fail)
        with pytest.raises(OutOfMemory, match="2 x 64x64 pixels; ask for fewer or smaller"):
            engine.submit(replace(REQUEST, num_images=2)).result()
    assert engine.submit(REQUEST).result().images


def test_where_memory_holds_one_picture_at_a_time_all_are_drawn(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, sizes = UNet.forward, list[int]()

    def small(self: UNet, x: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        sizes.append(len(x))
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x, timesteps, given)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", small)
        pictures = engine.submit(replace(REQUEST, num_images=4)).result().images
    assert sizes.count(4) == 1  # the scheduler learnt from it
    for picture, whole in zip(pictures, engine.submit(replace(REQUEST, num_images=4)).result().images, strict=True):
        assert levels_apart(picture, whole) <= 1


def test_other_errors_reach_the_asker_unchanged(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: UNet, *arguments: object) -> Tensor:
        raise ZeroDivisionError("shape")

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", fail)
        with pytest.raises(ZeroDivisionError, match="shape"):
            engine.submit(REQUEST).result()
    assert engine.submit(REQUEST).result().images


def test_nobody_waits_for_a_thread_that_has_failed(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Scheduler) -> list[Running]:
        raise LookupError("scheduler")

    monkeypatch.setattr(Scheduler, "next_batch", fail)
    told: list[Exception] = []
    engine = Engine([tiny_model], max_batch=4, on_failure=told.append)
    assert engine.failure is None
    with pytest.raises(LookupError, match="scheduler"):
        engine.submit(REQUEST).result(60)
    with pytest.raises(Broken, match="engine has failed"):
        engine.submit(REQUEST)
    engine.close()
    assert told == [engine.failure]


@pytest.mark.parametrize("when", ["beginning", "drawing"])
def test_a_lost_device_ends_the_engine_and_no_job_waits(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    def lost(_runner: Runner) -> None:
        raise LookupError("the device is lost")

    where, what = {"beginning": (Memory, "usable"), "drawing": (UNet, "forward")}[when]
    monkeypatch.setattr(where, what, fail)
    engine = Engine([tiny_model], max_batch=4)
    with pytest.raises(ZeroDivisionError):
        engine.submit(REQUEST).result(60)
    monkeypatch.setattr(Runner, "require_device", lost)
    with pytest.raises((ZeroDivisionError, LookupError)):
        engine.submit(REQUEST).result(60)
    engine.close()
    assert isinstance(engine.failure, LookupError)


requests = st.builds(
    Request,
    prompt=st.sampled_from(["a cat", "", "dogs"]),
    negative_prompt=st.sampled_from(["", "blur"]),
    seed=st.integers(0, 3),
    width=st.sampled_from([64, 72]),
    height=st.just(64),
    steps=st.integers(1, 5),
    scale=st.sampled_from([1.0, 4.0]),
    sampler=st.sampled_from(sorted(SOLVERS)),
    schedule=st.just("default"),
    num_images=st.integers(1, 3),
    image=st.sampled_from([None, "black"]),
)


@settings(max_examples=12, deadline=None)
@given(
    jobs=st.lists(st.tuples(requests, st.booleans(), st.floats(0, 0.05)), min_size=1, max_size=6),
    max_batch=st.integers(1, 4),
)
def test_whatever_arrives_and_leaves_each_picture_is_as_if_alone(
    tiny_model: StableDiffusion, jobs: list[tuple[Request, bool, float]], max_batch: int
) -> None:
    engine, alone = Engine([tiny_model], max_batch), Engine([tiny_model], max_batch=1)
    submitted = []
    for request, cancelled, wait in jobs:
        if request.image is not None:
            picture = np.zeros((request.height, request.width, 3), np.uint8)
            request = replace(request, image=picture, strength=0.7)
        future = engine.submit(request)
        time.sleep(wait)
        submitted.append((request, future, cancelled and future.cancel()))
    for request, future, was_cancelled in submitted:
        if was_cancelled:
            assert future.cancelled()
            continue
        for image, seed in zip(future.result(60).images, request.seeds, strict=True):
            expected = alone.submit(replace(request, seed=seed, num_images=1)).result(60).images[0]
            assert levels_apart(image, expected) <= 1
    engine.close()
    alone.close()


def test_close_draws_what_was_submitted_before(tiny_model: StableDiffusion) -> None:
    engine = Engine([tiny_model], max_batch=4)
    futures = [engine.submit(replace(REQUEST, seed=seed)) for seed in range(3)]
    engine.close()
    assert all(future.done() and future.result().images for future in futures)


def test_warming_up_draws_with_a_small_model(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Request] = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda request: (drawn.append(request), submit(request))[1])
    engine.warm_up()
    assert [(request.width, request.height) for request in drawn] == [(64, 64)]


def test_warming_up_a_large_model_on_a_cpu_only_reads_a_prompt(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine([replace(tiny_model, info=replace(tiny_model.info, native_size=512))], max_batch=4)
    monkeypatch.setattr(UNet, "forward", lambda *_: pytest.fail("a full-size image was generated"))
    engine.warm_up()
    engine.close()


def test_a_picture_in_tiles_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(REQUEST, width=8 * (TILE + 8), steps=1)
    whole, decode = engine.submit(request).result(), VAE.decode

    def for_a_tile(self: VAE, latents: torch.Tensor) -> torch.Tensor:
        if latents.shape[3] > TILE:
            raise torch.OutOfMemoryError
        return decode(self, latents)

    monkeypatch.setattr(VAE, "decode", for_a_tile)
    parts = engine.submit(request).result()
    assert whole.warnings == [] and parts.warnings == [TILED.format("decode")]
    assert parts.images[0].shape == whole.images[0].shape
    assert np.corrcoef(parts.images[0].ravel(), whole.images[0].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same(
    tiny_model: StableDiffusion, tiny_checkpoint: Path, engine: Engine, dtype: str
) -> None:
    model = StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cpu", dtype)
    half = Engine([model], max_batch=4)
    assert model.networks.unet.dtype != torch.float32
    request = replace(REQUEST, steps=4, sampler="dpmpp_2m")
    exact, rough = (side.submit(request).result().images[0].astype(float) for side in (engine, half))
    half.close()
    assert 10 * np.log10(255**2 / np.square(exact - rough).mean()) > 25


@pytest.mark.gpu
def test_a_gpu_draws_the_cpus_picture(tiny_checkpoint: Path, engine: Engine) -> None:
    gpu = Engine([StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cuda", "fp32")], max_batch=4)
    gpu.warm_up()
    ours, theirs = (side.submit(REQUEST).result().images[0].astype(float) for side in (engine, gpu))
    gpu.close()
    assert 10 * np.log10(255**2 / max(np.square(ours - theirs).mean(), 1e-9)) > 35
