"""Checkpoints that are loaded when a job first names them, beside the jobs that run."""

import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sd_core.catalogue import Catalogue, Entry, Kind, folders_in
from sd_core.engine.checkpoints import Checkpoints
from sd_core.engine.engine import Engine
from sd_core.engine.memory import Memory
from sd_core.errors import InvalidRequest, ModelError, OutOfMemory
from sd_core.formats.detect import NATIVE_SIZE_KEY
from sd_core.formats.keys import UNET_PREFIX, VAE_PREFIX
from sd_core.library import Library
from sd_core.models.taesd import TAESD
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request, Result
from tests.support.engine import SMALL_REQUEST, hold_forwards
from tests.support.pictures import levels_apart
from tests.support.random_weights import SMALLEST, write_checkpoint

SECONDS = 60
NAMES = ("tiny", "second", "third")
REQUEST = replace(SMALL_REQUEST, steps=2)


def save_part(source: Path, target: Path, keep: Callable[[str], bool]) -> None:
    tensors = {name: tensor for name, tensor in load_file(source).items() if keep(name)}
    save_file(tensors, target, {NATIVE_SIZE_KEY: str(SMALLEST.native_size)})


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory, smallest_checkpoint: Path) -> Path:
    """Three checkpoints: the third has the first one's text encoder and VAE, and only the first has a tokenizer.

    `vae/` has the second one's VAE.
    """
    folder = Path(shutil.copytree(smallest_checkpoint.parent, tmp_path_factory.mktemp("volume") / "weights"))
    write_checkpoint(folder / "second.safetensors", SMALLEST, torch.float32, seed=1)
    tensors = load_file(folder / "tiny.safetensors")
    other = {name: -tensor if name.startswith(UNET_PREFIX) else tensor for name, tensor in tensors.items()}
    save_file(other, folder / "third.safetensors", {NATIVE_SIZE_KEY: "128"})
    (folder / "vae").mkdir()
    save_part(folder / "second.safetensors", folder / "vae" / "sharp.safetensors", is_of_vae)
    return folder


def is_of_vae(name: str) -> bool:
    return name.startswith(VAE_PREFIX)


@pytest.fixture
def own_volume(volume: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(volume, tmp_path / "weights"))


Start = Callable[..., Engine]
Alone = Callable[[Request], np.ndarray]


@pytest.fixture
def start(volume: Path) -> Iterator[Start]:
    """Start an engine that has loaded the first checkpoint; `budget` is how many models stay loaded."""
    engines = []

    def begin(folder: Path = volume, budget: float | None = None) -> Engine:
        model = StableDiffusion.load(folder / "tiny.safetensors", folder, "cpu", "fp32")
        checkpoints = Checkpoints([model], Catalogue({Kind.CHECKPOINT: (folder,)}, max_depth=1))
        size = None if budget is None else int(budget * checkpoints["tiny"].nbytes)
        library = Library(Catalogue(folders_in(folder)))
        engines.append(Engine([model], 4, library=library, checkpoints=checkpoints, models_bytes=size))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def alone(volume: Path) -> Alone:
    """The image of a request by an engine that holds its model only."""
    images: dict[tuple[str, int], np.ndarray] = {}

    def image(request: Request) -> np.ndarray:
        name = request.model or "tiny"
        if (name, request.seed) not in images:
            engine = Engine([StableDiffusion.load(volume / f"{name}.safetensors", volume, "cpu", "fp32")], 4)
            images[name, request.seed] = engine.submit(replace(request, model=None)).result(SECONDS).images[0]
            engine.close()
        return images[name, request.seed]

    return image


def of(name: str, seed: int = 0) -> Request:
    return replace(REQUEST, model=name, seed=seed)


def test_a_checkpoint_is_loaded_when_a_job_first_names_it(start: Start, alone: Alone) -> None:
    engine = start()
    assert list(engine.checkpoints) == ["tiny", "second", "third"]
    assert list(engine.models) == ["tiny"]
    futures = [engine.submit(of(name)) for name in ("second", "tiny", "third")]
    for name, future in zip(("second", "tiny", "third"), futures, strict=True):
        assert levels_apart(future.result(SECONDS).images[0], alone(of(name))) <= 1
    assert sorted(engine.models) == ["second", "third", "tiny"]


def test_the_head_of_a_file_says_its_size_before_it_is_loaded(start: Start) -> None:
    engine = start()
    assert {name: about.native_size for name, about in engine.checkpoints.items()} == {
        "tiny": 64,
        "second": 64,
        "third": 128,
    }
    assert engine.checkpoints["second"].nbytes == engine.checkpoints["tiny"].nbytes
    assert list(engine.models) == ["tiny"]


def test_networks_with_equal_weights_are_held_once(start: Start) -> None:
    engine = start()
    for name in ("third", "second"):
        engine.submit(of(name)).result(SECONDS)
    tiny, second, third = (engine.models[name] for name in NAMES)
    assert third.networks.vae is tiny.networks.vae and third.vae_key == tiny.vae_key
    assert third.networks.text_encoder is tiny.networks.text_encoder and third.text_key == tiny.text_key
    assert third.unet_key != tiny.unet_key and third.networks.unet is not tiny.networks.unet
    assert not {*vars(second.keys).values()} & {*vars(tiny.keys).values()}


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
    gc.collect()
    assert dropped() is None
    assert levels_apart(engine.submit(of("tiny")).result(SECONDS).images[0], alone(of("tiny"))) <= 1


def test_a_pool_too_small_for_one_model_still_runs_each_alone(start: Start, alone: Alone) -> None:
    engine = start(budget=0.1)
    futures = [engine.submit(of(name)) for name in ("tiny", "second", "third", "tiny")]
    for name, future in zip(("tiny", "second", "third", "tiny"), futures, strict=True):
        assert levels_apart(future.result(SECONDS).images[0], alone(of(name))) <= 1
    assert list(engine.models) == ["tiny"]


def test_a_job_that_waits_for_room_is_not_overtaken_for_ever(start: Start) -> None:
    engine = start(budget=1)
    ended: list[str] = []
    names = ["tiny", "second", "tiny again", "second again"]
    futures = []
    for name in names:
        future = engine.submit(replace(of(name.split()[0]), steps=3))
        future.add_done_callback(lambda _, name=name: ended.append(name))  # type: ignore[misc]
        futures.append(future)
    for future in futures:
        future.result(SECONDS)
    # The two of the second model arrived before it was loaded, so that they share one load.
    assert ended in (
        ["tiny", "second", "second again", "tiny again"], ["tiny", "second again", "second", "tiny again"],
        ["tiny", "tiny again", "second", "second again"], ["tiny", "tiny again", "second again", "second"],
    )  # fmt: skip


def test_a_cancelled_job_drops_its_wait(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = start()
    reading, go_on = hold_reading(monkeypatch)
    waiting = [engine.submit(of("second", seed)) for seed in range(2)]
    assert reading.wait(SECONDS)
    assert waiting[0].cancel()
    assert engine.submit(of("tiny")).result(SECONDS).images, "a job that waits holds up nobody"
    go_on.set()
    assert waiting[1].result(SECONDS).images
    assert engine.submit(of("second", 5)).result(SECONDS).images


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


def test_a_checkpoint_that_is_deleted_while_warm_is_an_error_of_later_jobs_only(
    start: Start, own_volume: Path, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(own_volume)
    engine.submit(of("second")).result(SECONDS)
    with hold_forwards(monkeypatch) as (begun, _):
        running = engine.submit(of("second"))
        assert begun.wait(SECONDS)
        (own_volume / "second.safetensors").unlink()
        with pytest.raises(InvalidRequest, match=r"model: .*second"):
            engine.submit(of("second"))
    assert levels_apart(running.result(SECONDS).images[0], alone(of("second"))) <= 1


def test_a_checkpoint_that_is_replaced_while_warm_is_read_again(start: Start, own_volume: Path, alone: Alone) -> None:
    engine = start(own_volume)
    before = engine.submit(of("second")).result(SECONDS).images[0]
    shutil.copy(own_volume / "third.safetensors", own_volume / "new")
    (own_volume / "new").replace(own_volume / "second.safetensors")
    after = engine.submit(of("second")).result(SECONDS).images[0]
    assert levels_apart(before, alone(of("second"))) <= 1 and levels_apart(after, alone(of("third"))) <= 1
    assert engine.checkpoints["second"].native_size == 128


@pytest.mark.parametrize("content", [b"", b"x" * 1000])
def test_a_file_that_is_no_checkpoint_is_an_error_that_names_it(start: Start, own_volume: Path, content: bytes) -> None:
    engine = start(own_volume)
    (own_volume / "broken.safetensors").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"model: 'broken\.safetensors' cannot be used") as caught:
        engine.submit(of("broken"))
    assert str(own_volume) not in str(caught.value)


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


def test_an_unknown_checkpoint_is_refused_with_what_is_there(start: Start) -> None:
    expected = r"model: 'secnd' is not here; did you mean 'second'\? There are: second, tiny, third"
    with pytest.raises(InvalidRequest, match=expected):
        start().submit(of("secnd"))


def test_a_vae_by_name_takes_the_place_of_the_checkpoints_own(start: Start, own_volume: Path) -> None:
    tensors = {
        name: tensor for name, tensor in load_file(own_volume / "tiny.safetensors").items() if not is_of_vae(name)
    }
    whole = {**tensors, **load_file(own_volume / "vae" / "sharp.safetensors")}
    save_file(whole, own_volume / "whole.safetensors", {NATIVE_SIZE_KEY: "64"})
    engine = start(own_volume)
    own, other, expected = (
        engine.submit(replace(REQUEST, model=model, vae=vae)).result(SECONDS).images[0]
        for model, vae in (("tiny", None), ("tiny", "sharp"), ("whole", None))
    )
    assert levels_apart(other, expected) <= 1 and levels_apart(own, other) > 20
    keys = {name: model.vae_key for name, model in engine.models.items()}
    assert keys["whole"] != keys["tiny"], "it shares the file's VAE"
    with pytest.raises(InvalidRequest, match="vae: 'shrp' is not here; did you mean 'sharp'"):
        engine.submit(replace(REQUEST, vae="shrp"))


def test_a_vae_that_only_decodes_leaves_encoding_to_the_checkpoints_own(start: Start, own_volume: Path) -> None:
    torch.manual_seed(0)
    save_file(TAESD(has_encoder=False).state_dict(), own_volume / "vae" / "taesd.safetensors")
    engine = start(own_volume)
    image = np.full((64, 64, 3), 100, np.uint8)
    result = engine.submit(replace(REQUEST, image=image, vae="taesd")).result(SECONDS)
    assert result.images[0].shape == (64, 64, 3)
    assert levels_apart(result.images[0], engine.submit(replace(REQUEST, image=image)).result(SECONDS).images[0]) > 1


def test_a_checkpoint_without_text_encoder_and_vae_borrows_the_first_ones(
    start: Start, own_volume: Path, alone: Alone
) -> None:
    save_part(own_volume / "third.safetensors", own_volume / "bare.safetensors", lambda n: n.startswith(UNET_PREFIX))
    engine = start(own_volume, budget=1.5)
    result = engine.submit(of("bare")).result(SECONDS)
    assert levels_apart(result.images[0], alone(of("third"))) <= 1
    assert result.warnings == [
        "the checkpoint bare has no text encoder: that of tiny was used",
        "the checkpoint bare has no VAE: that of tiny was used",
    ]
    chosen = engine.submit(replace(of("bare"), vae="sharp")).result(SECONDS)
    assert chosen.warnings == ["the checkpoint bare has no text encoder: that of tiny was used"]
    engine.submit(of("second")).result(SECONDS)  # tiny makes room
    assert levels_apart(engine.submit(of("bare")).result(SECONDS).images[0], alone(of("third"))) <= 1


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
