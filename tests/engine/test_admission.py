"""Jobs that wait for their model: for its file to be read, and for room in the pool."""

import gc
import threading
import weakref
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sd_core.catalogue import Entry
from sd_core.engine.checkpoints import Checkpoints
from sd_core.engine.memory import Memory
from sd_core.errors import InvalidRequest, ModelError, OutOfMemory
from sd_core.models.unet import UNet
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Result
from tests.support.engine import hold_forwards
from tests.support.http import wait_until
from tests.support.pictures import levels_apart
from tests.support.volume import NAMES, SECONDS, Alone, Start, of


def collected(reference: weakref.ref[Any]) -> bool:
    gc.collect()
    return reference() is None


def test_the_least_recently_used_model_is_dropped(start: Start, alone: Alone) -> None:
    engine = start(budget=2)
    dropped = weakref.ref(engine.models["tiny"].networks.unet)
    engine.submit(of("second")).result(SECONDS)
    engine.submit(of("tiny")).result(SECONDS)
    write = engine.submit(of("third")).result(SECONDS)
    assert sorted(engine.models) == ["third", "tiny"]
    assert levels_apart(write.images[0], alone(of("third"))) <= 1
    engine.submit(of("second")).result(SECONDS)
    assert sorted(engine.models) == ["second", "third"]
    wait_until(lambda: collected(dropped))  # the engine's thread may still be at its last tick
    assert levels_apart(engine.submit(of("tiny")).result(SECONDS).images[0], alone(of("tiny"))) <= 1


def test_a_pool_too_small_for_one_model_still_runs_each_alone(start: Start, alone: Alone) -> None:
    engine = start(budget=0.1)
    futures = [engine.submit(of(name)) for name in ("tiny", "second", "third", "tiny")]
    for name, future in zip(("tiny", "second", "third", "tiny"), futures, strict=True):
        assert levels_apart(future.result(SECONDS).images[0], alone(of(name))) <= 1
    assert list(engine.models) == ["tiny"]


def test_a_job_that_waits_for_room_is_not_overtaken_for_ever(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start(budget=1)
    ended: list[str] = []

    def submit(name: str) -> Future[Result]:
        future = engine.submit(of(name.split()[0]))
        future.add_done_callback(lambda _: ended.append(name))
        return future

    with hold_forwards(monkeypatch) as (begun, _):
        futures = [submit("tiny")]
        assert begun.wait(SECONDS)
        futures += [submit(name) for name in ("second", "tiny again", "second again")]
    for future in futures:
        future.result(SECONDS)
    assert (ended[0], ended[-1]) == ("tiny", "tiny again")
    assert set(ended[1:3]) == {"second", "second again"}, "both waited for the model when it was loaded"


def test_a_cancelled_job_drops_its_wait(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    reading, go_on = hold_reading(monkeypatch)
    waiting = [engine.submit(of("second", seed)) for seed in range(2)]
    assert reading.wait(SECONDS)
    never = engine.submit(of("third"))
    assert waiting[0].cancel() and never.cancel()
    assert engine.submit(of("tiny")).result(SECONDS).images, "a job that waits holds up nobody"
    go_on.set()
    assert waiting[1].result(SECONDS).images
    assert engine.submit(of("second", 5)).result(SECONDS).images
    assert sorted(engine.models) == ["second", "tiny"], "nobody waits for the third"


def test_closing_finishes_the_jobs_that_wait_for_a_checkpoint(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    reading, go_on = hold_reading(monkeypatch)
    future = engine.submit(of("second"))
    assert reading.wait(SECONDS)
    threading.Timer(0.2, go_on.set).start()
    engine.close()
    assert future.result(0).images


def hold_reading(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold the next reading of a checkpoint: an event that is set when it begins, and one that lets it go on."""
    begun, go_on = threading.Event(), threading.Event()
    load = Checkpoints.load

    def held(self: Checkpoints, file: Entry, models: Any) -> Any:
        begun.set()
        go_on.wait(SECONDS)
        return load(self, file, models)

    monkeypatch.setattr(Checkpoints, "load", held)
    return begun, go_on


def test_a_checkpoint_that_fails_to_load_fails_its_jobs_only(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()

    def fail(*_: object, **__: object) -> None:
        raise ModelError("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(StableDiffusion, "read", fail)
        lost = [engine.submit(of("second", seed)) for seed in range(2)]
        assert engine.submit(of("tiny")).result(SECONDS).images
        for future in lost:
            with pytest.raises(InvalidRequest, match=r"model: 'second\.safetensors' cannot be used: damaged"):
                future.result(SECONDS)
    assert engine.submit(of("second")).result(SECONDS).images


@pytest.mark.parametrize("when", ["before", "while reading"])
def test_a_model_that_does_not_fit_into_memory_fails_its_jobs_only(
    start: Start, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    engine = start(budget=0.1)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("2 MB are needed and 1 MB free")

    with monkeypatch.context() as patch:
        where, what = {"before": (Memory, "require"), "while reading": (Checkpoints, "load")}[when]
        patch.setattr(where, what, fail)
        with pytest.raises(OutOfMemory, match="checkpoint 'second' does not fit into memory"):
            engine.submit(of("second")).result(SECONDS)
    assert engine.submit(of("tiny")).result(SECONDS).images


Job = tuple[str, int, bool]


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jobs=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 1), st.booleans()), min_size=2, max_size=8),
    budget=st.sampled_from([0.5, 1, 2]),
)
def test_any_mix_of_jobs_equals_solo_runs(start: Start, alone: Alone, jobs: list[Job], budget: float) -> None:
    engine = start(budget=budget)
    futures: list[Future[Result]] = [engine.submit(of(name, seed)) for name, seed, _ in jobs]
    for future, (_, _, is_cancelled) in zip(futures, jobs, strict=True):
        if is_cancelled:
            future.cancel()
    for future, (name, seed, _) in zip(futures, jobs, strict=True):
        if not future.cancelled():
            assert levels_apart(future.result(SECONDS).images[0], alone(of(name, seed))) <= 1
    engine.close()


def test_a_forward_that_lacks_memory_drops_the_models_that_no_job_uses(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, request = start(), replace(of("tiny"), width=128, height=128)
    expected = engine.submit(request).result(SECONDS).images[0]
    engine.submit(of("second")).result(SECONDS)
    forward, failures = UNet.forward, [torch.OutOfMemoryError()]

    def fail_once(self: UNet, *arguments: Any) -> torch.Tensor:
        if failures:
            raise failures.pop()
        return forward(self, *arguments)

    monkeypatch.setattr(UNet, "forward", fail_once)
    result = engine.submit(request).result(SECONDS)
    assert list(engine.models) == ["tiny"]
    assert levels_apart(result.images[0], expected) <= 1
