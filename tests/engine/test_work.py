"""What images may ask of the engine: new kinds of work, and work for the host."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from sd_core.engine.engine import Engine
from sd_core.engine.kinds import Kinds, kinds_of
from sd_core.engine.pool import Pool
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import Prepared
from sd_core.request import Request, Result
from sd_core.work import HostTask, Picture
from tests.support.kinds import Doubling, DoublingKind

REQUEST = Request("", seed=0, width=64, height=64, steps=2, sampler="euler", schedule="default")
SECONDS = 60


@pytest.fixture
def doubling() -> DoublingKind:
    return DoublingKind(room=8)


@pytest.fixture
def engine(tiny_model: StableDiffusion, doubling: DoublingKind) -> Iterator[Engine]:
    def kinds(pool: Pool, max_batch: int) -> Kinds:
        return {**kinds_of(pool, max_batch), Doubling: doubling}

    engine = Engine([tiny_model], max_batch=4, kinds=kinds)
    yield engine
    engine.close()


def image_of(value: float, shape: tuple[int, int, int] = (8, 8, 3)) -> HostTask:
    return HostTask(lambda: np.full(shape, value, np.uint8))


def run(engine: Engine, *pictures: Picture) -> Result:
    return engine.run(lambda: Prepared(list(pictures), []), REQUEST).result(SECONDS)


def doubled(*numbers: float) -> Picture:
    total = 0.0
    for number in numbers:
        total += yield Doubling(number)
    return image_of(total)


def test_a_new_kind_of_work_only_needs_registration(engine: Engine, doubling: DoublingKind) -> None:
    result = run(engine, doubled(1, 2, 3), doubled(10))
    assert [int(image[0, 0, 0]) for image in result.images] == [12, 20]
    assert doubling.forwards == [[1, 10], [2], [3]], "images share its forwards"
    assert doubling.warmed_up == 1
    assert result.timings_ms["denoise"] > 0, "its time is counted in its phase"


def test_its_forwards_are_halved_if_memory_is_short(engine: Engine, doubling: DoublingKind) -> None:
    def check(works: Sequence[Doubling]) -> None:
        if len(works) > 1:
            raise MemoryError

    doubling.check = check
    assert [int(image[0, 0, 0]) for image in run(engine, doubled(1), doubled(10)).images] == [2, 20]
    assert doubling.forwards == [[1, 10], [1], [10]]


def test_a_host_task_does_not_delay_other_images(engine: Engine) -> None:
    go_on, threads = threading.Event(), list[str]()

    def on_the_host() -> int:
        threads.append(threading.current_thread().name)
        assert go_on.wait(SECONDS)
        return 21

    def picture() -> Picture:
        number = yield HostTask(on_the_host)
        return image_of((yield Doubling(number)))

    slow = engine.run(lambda: Prepared([picture()], []), REQUEST)
    assert engine.submit(REQUEST).result(SECONDS).images, "a whole image is generated meanwhile"
    assert not slow.done()
    go_on.set()
    assert int(slow.result(SECONDS).images[0][0, 0, 0]) == 42
    assert threads != ["engine"]


def test_a_picture_goes_on_while_the_host_works_ahead(engine: Engine, doubling: DoublingKind) -> None:
    go_on, threads = threading.Event(), list[str]()

    def ahead() -> int:
        threads.append(threading.current_thread().name)
        assert go_on.wait(SECONDS)
        return 5

    def picture() -> Picture:
        future = yield HostTask(ahead, waits=False)
        number = yield Doubling(1)
        assert not future.done()
        go_on.set()
        number += yield HostTask(future.result)
        return image_of(number)

    assert int(run(engine, picture()).images[0][0, 0, 0]) == 2 + 5
    assert threads != ["engine"]


def test_what_fails_ahead_fails_the_job_that_asks_for_its_result(engine: Engine) -> None:
    def fail() -> None:
        raise ZeroDivisionError("ahead")

    def picture(*, asks: bool) -> Picture:
        future = yield HostTask(fail, waits=False)
        yield Doubling(1)
        if asks:
            yield HostTask(future.result)
        return image_of(3)

    assert run(engine, picture(asks=False)).images
    with pytest.raises(ZeroDivisionError, match="ahead"):
        run(engine, picture(asks=True))


def test_a_failed_host_task_fails_only_its_own_job(engine: Engine) -> None:
    def fail() -> None:
        raise ZeroDivisionError("on the host")

    def first() -> Picture:
        yield HostTask(fail)
        return image_of(0)

    def last() -> Picture:
        yield Doubling(1)
        return HostTask(fail)

    for picture in (first, last):
        future = engine.run(lambda picture=picture: Prepared([picture()], []), REQUEST)  # type: ignore[misc]
        with pytest.raises(ZeroDivisionError, match="on the host"):
            future.result(SECONDS)
    assert engine.submit(REQUEST).result(SECONDS).images


def test_the_last_host_task_may_return_another_size(engine: Engine) -> None:
    def picture() -> Picture:
        yield Doubling(1)
        return image_of(7, (40, 24, 3))

    assert [image.shape for image in run(engine, picture(), doubled(1)).images] == [(40, 24, 3), (8, 8, 3)]


def test_cancelling_ends_an_image_whose_host_task_is_running(engine: Engine) -> None:
    begun, go_on, resumed = threading.Event(), threading.Event(), list[int]()

    def picture() -> Picture:
        yield HostTask(lambda: (begun.set(), go_on.wait(SECONDS)))
        resumed.append(1)
        return image_of(0)

    future = engine.run(lambda: Prepared([picture()], []), REQUEST)
    assert begun.wait(SECONDS)
    assert future.cancel()
    go_on.set()
    assert engine.submit(REQUEST).result(SECONDS).images
    assert resumed == []


def test_closing_waits_for_host_tasks(tiny_model: StableDiffusion) -> None:
    def picture() -> Picture:
        yield HostTask(lambda: threading.Event().wait(0.05))
        return image_of(3)

    engine = Engine([tiny_model], max_batch=4)
    future = engine.run(lambda: Prepared([picture()], []), REQUEST)
    engine.close()
    assert int(future.result(0).images[0][0, 0, 0]) == 3


def test_an_error_in_preparing_a_job_fails_it(engine: Engine) -> None:
    def prepare() -> Prepared:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        engine.run(prepare, REQUEST).result(SECONDS)


def nothing() -> Generator[Any, Any, HostTask]:
    return image_of(5)
    yield


def test_an_image_may_ask_for_nothing(engine: Engine) -> None:
    make: Callable[[], Picture] = nothing
    assert int(run(engine, make()).images[0][0, 0, 0]) == 5


def test_every_network_runs_on_the_engines_thread_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[str, set[str]] = {}

    def noted(network: type[Any], method: str) -> None:
        call = getattr(network, method)

        def noting(self: Any, *arguments: Any, **named: Any) -> Any:
            threads.setdefault(network.__name__, set()).add(threading.current_thread().name)
            return call(self, *arguments, **named)

        monkeypatch.setattr(network, method, noting)

    for network, method in ((CLIPTextEncoder, "forward"), (UNet, "forward"), (VAE, "decode"), (VAE, "moments")):
        noted(network, method)
    engine.warm_up()
    image = np.zeros((64, 64, 3), np.uint8)
    engine.submit(replace(REQUEST, prompt="a cat", image=image)).result(SECONDS)
    assert threads == {name: {"engine"} for name in ("CLIPTextEncoder", "UNet", "VAE")}


def test_images_that_ask_for_the_same_task_share_one_call(engine: Engine) -> None:
    begun, gate, calls = threading.Event(), threading.Event(), list[int]()

    def load() -> int:
        calls.append(1)
        begun.set()
        assert gate.wait(SECONDS)
        return 7

    future = engine.run(lambda: Prepared([waiting_for(load) for _ in range(16)], []), REQUEST)
    assert begun.wait(SECONDS)
    gate.set()
    assert [int(image[0, 0, 0]) for image in future.result(SECONDS).images] == [7] * 16 and calls == [1]


def test_what_loads_holds_up_no_other_work_for_the_host(engine: Engine) -> None:
    gate = threading.Event()
    tasks = [partial(gate.wait, SECONDS) for _ in range(8)]  # more than there are threads
    slow = engine.run(lambda: Prepared([waiting_for(task) for task in tasks], []), REQUEST)
    assert int(run(engine, image_by_itself(5)).images[0][0, 0, 0]) == 5
    assert not slow.done()
    gate.set()
    assert len(slow.result(SECONDS).images) == 8


def waiting_for(task: Callable[[], Any]) -> Picture:
    return image_of((yield HostTask(task, loads=True)))


def image_by_itself(value: int) -> Picture:
    return image_of((yield HostTask(lambda: value)))
