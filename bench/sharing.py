"""The throughput of the engine, beside the networks alone: in one process, without the platform."""

import queue
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.common import Options, ratio, summary, time_in_turn
from sd_core.engine.engine import Engine
from sd_core.engine.graphs import Bucket, GraphedUNet, Step, for_device
from sd_core.models.given import Given
from sd_core.models.unet import UNet
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.request import Request, Result
from sd_core.work import Context, DecodeWork, EncodeWork, Picture, TextWork, UNetWork, Work
from tests.support.drive import drive
from tests.support.jobs import UNGUIDED_EVERY

AnyUNet = UNet | GraphedUNet

# Jobs beyond the batch that are submitted, so that no place in a forward stays empty while one job follows another.
SPARE = 2

# How many times a full batch is replaced while the steady state is timed.
WINDOW = 4


def measure_sharing(
    model: StableDiffusion,
    packages: Mapping[str, Mapping[Bucket, Step]],
    options: Options,
    batch: int,
    steps: int,
    prompt: str,
) -> dict[str, Any]:
    """The gain of sharing forwards, how much of it the engine reaches, and the engine's overhead for a single job."""
    unet = for_device(model.networks.unet, model.device, packages.get(model.info.name, {}))
    size = model.info.native_size
    request = Request(prompt, seed=0, width=size, height=size, steps=steps)
    requests = [
        replace(request, seed=seed, scale=1.0 if (seed + 1) % UNGUIDED_EVERY == 0 else 7.5) for seed in range(batch)
    ]
    shared, alone = Engine([model], batch, packages=packages), Engine([model], 1, packages=packages)
    try:
        forwards = _unet_alone(model, unet, requests, options)
        engine = _engines(shared, alone, requests, options)
        return {
            "images": batch,
            "steps": steps,
            "unet": forwards,
            "engine": engine,
            "engine_gain_over_unet_gain": round(engine["gain"] / forwards["gain"], 3),
            "continuous": _continuous(shared, request, batch, options),
            "lone_job": _lone_job(alone, model, unet, request, options),
        }
    finally:
        shared.close()
        alone.close()


@torch.inference_mode()
def _unet_alone(model: StableDiffusion, unet: AnyUNet, requests: Sequence[Request], options: Options) -> dict[str, Any]:
    """One forward of all images' rows, beside forwards of two rows each: a guided image, or two without guidance."""
    works = [_first_rows(request, model) for request in requests]
    guided = [[work] for work in works if len(work.contexts) == 2]
    others = [work for work in works if len(work.contexts) == 1]
    small = [_forward(model, unet, group) for group in [*guided, *zip(others[::2], others[1::2], strict=False)]]
    if len(others) % 2:
        small.append(_forward(model, unet, others[-1:]))

    def one_by_one() -> None:
        for forward in small:
            forward()

    return _gain(time_in_turn({"together": _forward(model, unet, works), "one_by_one": one_by_one}, options))


def _first_rows(request: Request, model: StableDiffusion) -> UNetWork:
    (picture,) = prepare(request, model).pictures
    work = next(picture)
    while not isinstance(work, UNetWork):
        work = picture.send(_answer(work, model))
    picture.close()
    return work


def _engines(shared: Engine, alone: Engine, requests: Sequence[Request], options: Options) -> dict[str, Any]:
    """The same images as whole jobs, submitted at once: in shared forwards, and one by one."""

    def generate(engine: Engine) -> None:
        for future in [engine.submit(request) for request in requests]:
            future.result()

    sides = {"together": partial(generate, shared), "one_by_one": partial(generate, alone)}
    return _gain(time_in_turn(sides, options, warm_up=1))


def _gain(seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "together_s": summary(seconds["together"]),
        "one_by_one_s": summary(seconds["one_by_one"]),
        "gain": ratio(seconds["one_by_one"], seconds["together"]),
    }


def _continuous(engine: Engine, request: Request, batch: int, options: Options) -> dict[str, Any]:
    """Seconds per image if jobs join a full batch at different ticks, beside one job of as many images."""
    static = time_in_turn(
        {"static": lambda: engine.submit(replace(request, num_images=batch)).result()}, options, warm_up=1
    )["static"]
    per_image = [seconds / batch for seconds in static]
    joined = _steady_seconds(engine, request, batch)
    return {
        "static_s_per_image": summary(per_image, digits=5),
        "continuous_s_per_image": round(joined, 5),
        "efficiency": round(statistics.median(per_image) / joined, 3),
    }


def _steady_seconds(engine: Engine, request: Request, batch: int) -> float:
    """Seconds per image while the batch is always full of equal jobs, each at a different step.

    The first jobs have fewer steps, each by another number, so that the jobs after them begin at different ticks. The
    time is taken from when a batch of jobs has ended until `WINDOW` times as many more have.
    """
    ended: queue.SimpleQueue[tuple[float, Future[Result]]] = queue.SimpleQueue()
    running: set[Future[Result]] = set()

    def submit(seed: int, steps: int) -> None:
        future = engine.submit(replace(request, seed=seed, steps=steps))
        running.add(future)
        future.add_done_callback(lambda done: ended.put((time.perf_counter(), done)))

    for index in range(batch + SPARE):
        submit(index, max(1, min(request.steps, request.steps * (index + 1) // batch)))
    times: list[float] = []
    while len(times) < batch * (1 + WINDOW):
        at, future = ended.get()
        future.result()
        running.remove(future)
        times.append(at)
        submit(batch + SPARE + len(times), request.steps)
    for future in running:
        future.cancel()
    return (times[-1] - times[batch - 1]) / (batch * WINDOW)


def _lone_job(
    engine: Engine, model: StableDiffusion, unet: AnyUNet, request: Request, options: Options
) -> dict[str, Any]:
    """A single job in the engine, beside the same job in a bare loop over the same networks."""
    sides = {
        "engine": lambda: engine.submit(request).result().images,
        "bare": lambda: generate_bare(request, model, unet),
    }
    seconds = time_in_turn(sides, options, warm_up=1)
    return {
        "engine_s": summary(seconds["engine"]),
        "bare_s": summary(seconds["bare"]),
        "ratio": ratio(seconds["engine"], seconds["bare"]),
        "equal": all(map(np.array_equal, sides["engine"](), sides["bare"]())),
    }


@torch.inference_mode()
def generate_bare(request: Request, model: StableDiffusion, unet: AnyUNet) -> list[np.ndarray]:
    """The request's images, uint8 (H, W, 3), without thread, queue or batch."""
    return [_finish(picture, model, unet) for picture in prepare(request, model).pictures]


def _finish(picture: Picture, model: StableDiffusion, unet: AnyUNet) -> np.ndarray:
    given: Given | None = None

    def answer(work: Work) -> Any:
        nonlocal given
        if not isinstance(work, UNetWork):
            return _answer(work, model)
        given = given or _given(model, [work])  # an image's prompts are the same at every step
        return unet(work.latents, _timesteps([work]), given)

    last, _ = drive(picture, answer)
    image: np.ndarray = last.run()
    return image


def _answer(work: Work, model: StableDiffusion) -> Any:
    """The answer of a network other than the UNet."""
    match work:
        case TextWork(prompts=prompts):
            states = model.networks.text_encoder(torch.tensor(prompts, device=model.device))
            return tuple(Context(ids, each) for ids, each in zip(prompts, states.split(1), strict=True))
        case EncodeWork(pixels=pixels):
            return model.networks.vae.moments(pixels)
        case DecodeWork(latents=latents):
            return model.networks.vae.decode(latents)
    raise TypeError(f"unexpected work: {work}")


def _forward(model: StableDiffusion, unet: AnyUNet, works: Sequence[UNetWork]) -> Callable[[], Tensor]:
    """One forward of the UNet with all rows; keys and values of the prompts are computed beforehand."""
    latents = torch.cat([work.latents for work in works])
    return partial(unet, latents, _timesteps(works), _given(model, works))


def _timesteps(works: Sequence[UNetWork]) -> Tensor:
    return torch.tensor([work.timestep for work in works], dtype=torch.float32, device=works[0].latents.device)


def _given(model: StableDiffusion, works: Sequence[UNetWork]) -> Given:
    rows = [image for image, work in enumerate(works) for _ in work.contexts]
    image_of_row = None if len(rows) == len(works) else torch.tensor(rows, device=model.device)
    states = torch.cat([context.states for work in works for context in work.contexts])
    return model.networks.unet.given(states, image_of_row)
