"""Noise made ahead: what a picture yields for it, and that it changes nothing."""

from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sd_core.pipeline.ahead import supplied
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.request import Request
from sd_core.sampling import noise
from sd_core.sampling.ahead import DEPTH, Ahead
from sd_core.sampling.brownian import BrownianTree
from sd_core.work import Context, DecodeWork, EncodeWork, HostTask, TextWork, UNetWork
from tests.support.drive import drive

NUMBERS = [torch.tensor(float(number)) for number in range(8)]


def asking(ahead: Ahead, count: int = len(NUMBERS)) -> Generator[int, None, list[float]]:
    """Yields a work, then takes one number; the last work needs none."""
    taken = []
    for work in range(count):
        yield work
        taken.append(float(ahead.take()))
    yield count
    return taken


def run_at_once(asked: Any) -> Any:
    if not isinstance(asked, HostTask):
        return None
    if asked.waits:
        return asked.run()
    future: Future[None] = Future()
    asked.run()
    future.set_result(None)
    return future


def test_noise_is_made_before_the_work_and_never_waited_for_if_it_is_ready() -> None:
    ahead = Ahead(iter(NUMBERS), started=True)
    taken, asked = drive(supplied(asking(ahead), ahead), run_at_once)
    assert taken == [float(number) for number in range(8)]
    assert isinstance(asked[0], HostTask) and not asked[0].waits
    assert not any(isinstance(each, HostTask) and each.waits for each in asked)
    assert [each for each in asked if not isinstance(each, HostTask)] == list(range(9))


def test_a_picture_waits_on_the_host_for_noise_that_is_not_ready() -> None:
    ahead = Ahead(iter(NUMBERS), started=True)
    late: list[tuple[Any, Future[None]]] = []

    def slowly(asked: Any) -> Any:
        """The host does a task only when its result is waited for."""
        if not isinstance(asked, HostTask):
            return None
        if not asked.waits:
            late.append((asked.run, Future()))
            return late[-1][1]
        run, future = late[-1]
        run()
        future.set_result(None)
        return asked.run()

    taken, asked = drive(supplied(asking(ahead), ahead), slowly)
    assert taken == [float(number) for number in range(8)]
    waits = sum(isinstance(each, HostTask) and each.waits for each in asked)
    assert waits == len(late) == -(-len(NUMBERS) // DEPTH), "one wait for each time that several are made"


def test_noise_that_cannot_be_made_fails_the_picture() -> None:
    def broken() -> Generator[torch.Tensor, None, None]:
        raise MemoryError("no room for noise")
        yield NUMBERS[0]

    ahead = Ahead(broken(), started=True)

    def failing(asked: Any) -> Any:
        if not isinstance(asked, HostTask):
            return None
        if asked.waits:
            return asked.run()
        future: Future[None] = Future()
        try:
            asked.run()
        except MemoryError as error:
            future.set_exception(error)
        return future

    with pytest.raises(MemoryError, match="no room for noise"):
        drive(supplied(asking(ahead), ahead), failing)


def test_a_sampler_that_takes_more_than_one_finds_them_all_the_same() -> None:
    def greedy(ahead: Ahead) -> Generator[int, None, list[float]]:
        yield 0
        return [float(ahead.take()) for _ in NUMBERS]

    ahead = Ahead(iter(NUMBERS), started=True)
    assert drive(supplied(greedy(ahead), ahead), run_at_once)[0] == [float(number) for number in range(8)]
    with pytest.raises(StopIteration):
        ahead.take()


def network(asked: Any) -> Any:
    """Stands in for the networks and the host's pool."""
    match asked:
        case TextWork(prompts=prompts):
            return tuple(Context(prompt, torch.zeros(1, 3, 2)) for prompt in prompts)
        case EncodeWork():
            return torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
        case UNetWork(latents=latents, contexts=contexts):
            return latents.expand(len(contexts), -1, -1, -1)
        case DecodeWork():
            return torch.zeros(1, 3, 64, 64)
    return run_at_once(asked)


@pytest.mark.parametrize(
    ("sampler", "rng", "made"),
    [
        ("dpmpp_2m_sde", "cpu", 5),
        ("dpmpp_sde", "cpu", 10),
        ("euler_a", "nv", 4 + DEPTH),
        ("euler_a", "cpu", 0),
        ("euler", "nv", 0),
    ],
)
def test_pictures_make_what_takes_time_on_the_host(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch, sampler: str, rng: str, made: int
) -> None:
    """Of a GPU's numbers, the initial noise and the sampler's first draw are made at once: perhaps it draws no more.

    Up to `DEPTH` are made that no step needs.
    """
    on_host, places = [False], list[bool]()
    path, philox = BrownianTree.noise, noise.philox_normal

    def counted(function: Any) -> Any:
        return lambda *arguments: (places.append(on_host[0]), function(*arguments))[1]

    monkeypatch.setattr(BrownianTree, "noise", counted(path))
    monkeypatch.setattr(noise, "philox_normal", counted(philox))

    def answer(asked: Any) -> Any:
        on_host[0] = isinstance(asked, HostTask)
        try:
            return network(asked)
        finally:
            on_host[0] = False

    request = Request("", seed=1, width=64, height=64, steps=6, sampler=sampler, schedule="karras", rng=rng)
    (picture,) = prepare(request, tiny_model).pictures
    drive(picture, answer)
    assert sum(places) == made
    assert places.count(False) == {"cpu": 0, "nv": 2 if sampler == "euler_a" else 1}[rng]


def test_a_path_spans_the_whole_schedule_even_with_an_image(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []

    def recorded(seed: int, low: float, high: float, shape: tuple[int, ...]) -> BrownianTree:
        paths.append((seed, low, high, shape))
        return BrownianTree(seed, low, high, shape)

    monkeypatch.setattr(noise, "BrownianTree", recorded)
    image = np.zeros((64, 64, 3), np.uint8)
    request = Request("", seed=7, width=64, height=64, steps=10, sampler="dpmpp_2m_sde", schedule="ddim_uniform")
    for job in (request, replace(request, image=image, strength=0.3)):
        (picture,) = prepare(job, tiny_model).pictures
        drive(picture, network)
    assert paths[0] == paths[1]
    seed, low, high, shape = paths[0]
    assert (seed, shape) == (7, (1, 4, 8, 8))
    assert (low, high) == pytest.approx((0.0413, 8.3907), abs=6e-5), "not the model's own ends"
    assert (low, high) == (float(np.float32(low)), float(np.float32(high)))
