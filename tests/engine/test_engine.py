"""The engine: futures, cancellation, progress, and images that do not depend on what else runs."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_core.engine.engine import Engine
from sd_core.errors import Busy
from sd_core.models.unet import UNet
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Progress, Request
from sd_core.sampling.registry import SOLVERS
from tests.support.engine import SMALL_REQUEST, hold_forwards
from tests.support.pictures import levels_apart, psnr


def test_a_job_results_in_images_seeds_and_timings(engine: Engine) -> None:
    result = engine.submit(replace(SMALL_REQUEST, width=72, num_images=2)).result()
    assert [image.shape for image in result.images] == [(64, 72, 3)] * 2
    assert result.images[0].dtype == np.uint8
    assert result.seeds == [3, 4]
    assert set(result.timings_ms) == {"queue", "encode", "denoise", "decode"}
    assert all(spent >= 0 for spent in result.timings_ms.values())
    assert result.timings_ms["denoise"] > 0


def test_each_image_of_a_job_is_that_of_its_seed(engine: Engine) -> None:
    together = engine.submit(replace(SMALL_REQUEST, num_images=5)).result()
    for image, seed in zip(together.images, together.seeds, strict=True):
        alone = engine.submit(replace(SMALL_REQUEST, seed=seed)).result().images[0]
        assert levels_apart(image, alone) <= 1
    assert levels_apart(together.images[0], together.images[1]) > 20


def test_the_same_request_gives_the_same_image(engine: Engine) -> None:
    first, again = (engine.submit(SMALL_REQUEST).result().images[0] for _ in range(2))
    assert np.array_equal(first, again)


def test_cancelling_ends_a_running_job(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_forwards(monkeypatch) as (begun, sizes):
        future = engine.submit(replace(SMALL_REQUEST, steps=150))
        waiting = engine.submit(SMALL_REQUEST)
        assert begun.wait(60)
        assert future.cancel()
        assert waiting.cancel()
    assert engine.submit(SMALL_REQUEST).result().images
    assert future.cancelled()
    assert len(sizes) == 1 + 1 + 3 + 1  # the first, and the prompts, steps and decoding of the last job


def test_a_new_job_joins_the_next_forward(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(SMALL_REQUEST, seed=9, steps=2, sampler="dpmpp_2m", scale=1.0)
    with hold_forwards(monkeypatch) as (begun, sizes):
        first = engine.submit(SMALL_REQUEST)
        assert begun.wait(60)
        second = engine.submit(other)
    for future, request in ((first, SMALL_REQUEST), (second, other)):
        assert levels_apart(future.result().images[0], engine.submit(request).result().images[0]) <= 1
    assert max(sizes) == 2


def test_jobs_beyond_the_limit_are_refused(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine([tiny_model], max_batch=1, max_jobs=2)
    with hold_forwards(monkeypatch):
        futures = [engine.submit(SMALL_REQUEST), engine.submit(SMALL_REQUEST)]
        with pytest.raises(Busy, match="the engine's queue is full: 2 jobs"):
            engine.submit(SMALL_REQUEST)
        assert futures[1].cancel()
        futures.append(engine.submit(SMALL_REQUEST))
    assert futures[0].result().images and futures[2].result().images
    engine.close()
    with pytest.raises(Busy, match="shutting down"):
        engine.submit(SMALL_REQUEST)


def test_each_step_is_reported(engine: Engine) -> None:
    reported: list[Progress] = []
    engine.submit(replace(SMALL_REQUEST, num_images=2), reported.append).result()
    assert [(progress.step, progress.steps, progress.percent) for progress in reported] == [
        (1, 3, 33),
        (2, 3, 66),
        (3, 3, 100),
    ]
    assert [progress.preview().shape for progress in reported] == [(8, 8, 3)] * 3
    short: list[Progress] = []
    picture = np.zeros((64, 64, 3), np.uint8)
    engine.submit(replace(SMALL_REQUEST, steps=10, image=picture, strength=0.25, sampler="heun"), short.append).result()
    assert [(progress.step, progress.steps, progress.percent) for progress in short] == [(1, 2, 66), (2, 2, 100)]


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


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    jobs=st.lists(st.tuples(requests, st.booleans(), st.floats(0, 0.05)), min_size=1, max_size=6),
    max_batch=st.integers(1, 4),
)
def test_each_image_is_as_if_alone_whatever_else_runs(
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


def test_close_finishes_submitted_jobs(tiny_model: StableDiffusion) -> None:
    engine = Engine([tiny_model], max_batch=4)
    futures = [engine.submit(replace(SMALL_REQUEST, seed=seed)) for seed in range(3)]
    engine.close()
    assert all(future.done() and future.result().images for future in futures)


def test_a_warm_up_generates_an_image_with_a_small_model(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    generated: list[Request] = []
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda request: (generated.append(request), submit(request))[1])
    engine.warm_up()
    assert [(request.width, request.height) for request in generated] == [(64, 64)]


def test_a_warm_up_of_a_large_model_on_a_cpu_only_encodes_a_prompt(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine([replace(tiny_model, info=replace(tiny_model.info, native_size=512))], max_batch=4)
    monkeypatch.setattr(UNet, "forward", lambda *_: pytest.fail("a full-size image was generated"))
    engine.warm_up()
    engine.close()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_generates_nearly_the_same(
    tiny_model: StableDiffusion, tiny_checkpoint: Path, engine: Engine, dtype: str
) -> None:
    model = StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cpu", dtype)
    half = Engine([model], max_batch=4)
    assert model.networks.unet.dtype != torch.float32
    request = replace(SMALL_REQUEST, steps=4, sampler="dpmpp_2m")
    exact, rough = (side.submit(request).result().images[0] for side in (engine, half))
    half.close()
    assert psnr(rough, exact) > 25


@pytest.mark.gpu
def test_a_gpu_generates_the_cpus_image(tiny_checkpoint: Path, engine: Engine) -> None:
    gpu = Engine([StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cuda", "fp32")], max_batch=4)
    gpu.warm_up()
    on_cpu, on_gpu = (side.submit(SMALL_REQUEST).result().images[0] for side in (engine, gpu))
    gpu.close()
    assert psnr(on_gpu, on_cpu) > 35
