"""What the engine makes of one device, beside the networks alone: in one process, without the platform."""

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
from sd_core.models.unet import Contexts, UNet
from sd_core.models.vae import VAE
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.request import Request, Result
from sd_core.work import Decode, Encode, Picture, UNetRows

AnyUNet = UNet | GraphedUNet

UNGUIDED_EVERY = 3
"""One picture in so many is drawn without guidance: one row of a forward instead of two."""
SPARE = 2
WINDOW = 4
"""Times that a full batch is replaced while a steady state is timed."""


def measure_sharing(
    model: StableDiffusion, packages: Mapping[Bucket, Step], options: Options, batch: int, steps: int, prompt: str
) -> dict[str, Any]:
    """The gain of sharing forwards, how near to it the engine comes, and what the engine costs a lone job."""
    unet = for_device(model.networks.unet, model.device, packages)
    size = model.info.native_size
    request = Request(prompt, seed=0, width=size, height=size, steps=steps)
    requests = [
        replace(request, seed=seed, scale=1.0 if (seed + 1) % UNGUIDED_EVERY == 0 else 7.5) for seed in range(batch)
    ]
    shared, alone = Engine(model, batch, packages=packages), Engine(model, 1, packages=packages)
    try:
        forwards = _unet_alone(model, unet, requests, options)
        engine = _engines(shared, alone, requests, options)
        return {
            "pictures": batch,
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
    """One forward of all pictures' rows beside forwards of two rows: a guided picture, or two that are not."""
    works = [_first_rows(request, model) for request in requests]
    guided = [[work] for work in works if len(work.context) == 2]
    others = [work for work in works if len(work.context) == 1]
    small = [_forward(unet, group) for group in [*guided, *zip(others[::2], others[1::2], strict=False)]]
    if len(others) % 2:
        small.append(_forward(unet, others[-1:]))

    def one_by_one() -> None:
        for forward in small:
            forward()

    return _gain(time_in_turn({"together": _forward(unet, works), "one_by_one": one_by_one}, options))


def _first_rows(request: Request, model: StableDiffusion) -> UNetRows:
    (picture,) = prepare(request, model).pictures
    work = next(picture)
    picture.close()
    assert isinstance(work, UNetRows)
    return work


def _engines(shared: Engine, alone: Engine, requests: Sequence[Request], options: Options) -> dict[str, Any]:
    """The same pictures as whole jobs, submitted at once, drawn in shared forwards and one by one."""

    def draw(engine: Engine) -> None:
        for future in [engine.submit(request) for request in requests]:
            future.result()

    sides = {"together": partial(draw, shared), "one_by_one": partial(draw, alone)}
    return _gain(time_in_turn(sides, options, warm_up=1))


def _gain(seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "together_s": summary(seconds["together"]),
        "one_by_one_s": summary(seconds["one_by_one"]),
        "gain": ratio(seconds["one_by_one"], seconds["together"]),
    }


def _continuous(engine: Engine, request: Request, batch: int, options: Options) -> dict[str, Any]:
    """Seconds a picture where jobs join a full batch at different ticks, beside one job of as many pictures."""
    static = time_in_turn(
        {"static": lambda: engine.submit(replace(request, num_images=batch)).result()}, options, warm_up=1
    )["static"]
    a_picture = [seconds / batch for seconds in static]
    joined = _steady_seconds(engine, request, batch)
    return {
        "static_s_a_picture": summary(a_picture, digits=5),
        "continuous_s_a_picture": round(joined, 5),
        "efficiency": round(statistics.median(a_picture) / joined, 3),
    }


def _steady_seconds(engine: Engine, request: Request, batch: int) -> float:
    """Seconds a picture while the batch is always full of equal jobs, each at a step of its own.

    The first jobs are shorter, one less than the other, so that those after them begin at different ticks; what is
    timed begins when as many as fill the batch have ended, and ends `WINDOW` times as many later. Some jobs more than
    the batch holds are under way, so that no place in a forward stays empty while a job follows another.
    """
    ended: queue.SimpleQueue[tuple[float, Future[Result]]] = queue.SimpleQueue()
    under_way: set[Future[Result]] = set()

    def submit(seed: int, steps: int) -> None:
        future = engine.submit(replace(request, seed=seed, steps=steps))
        under_way.add(future)
        future.add_done_callback(lambda done: ended.put((time.perf_counter(), done)))

    for index in range(batch + SPARE):
        submit(index, max(1, min(request.steps, request.steps * (index + 1) // batch)))
    times: list[float] = []
    while len(times) < batch * (1 + WINDOW):
        at, future = ended.get()
        future.result()
        under_way.remove(future)
        times.append(at)
        submit(batch + SPARE + len(times), request.steps)
    for future in under_way:
        future.cancel()
    return (times[-1] - times[batch - 1]) / (batch * WINDOW)


def _lone_job(
    engine: Engine, model: StableDiffusion, unet: AnyUNet, request: Request, options: Options
) -> dict[str, Any]:
    """A job alone in the engine beside the same job in a bare loop of the same networks."""
    sides = {"engine": lambda: engine.submit(request).result().images, "bare": lambda: draw_bare(request, model, unet)}
    seconds = time_in_turn(sides, options, warm_up=1)
    return {
        "engine_s": summary(seconds["engine"]),
        "bare_s": summary(seconds["bare"]),
        "ratio": ratio(seconds["engine"], seconds["bare"]),
        "equal": all(map(np.array_equal, sides["engine"](), sides["bare"]())),
    }


@torch.inference_mode()
def draw_bare(request: Request, model: StableDiffusion, unet: AnyUNet) -> list[np.ndarray]:
    """The request's pictures, uint8 (H, W, 3), without thread, queue or batch."""
    return [_image(_finish(picture, model.networks.vae, unet)) for picture in prepare(request, model).pictures]


def _finish(picture: Picture, vae: VAE, unet: AnyUNet) -> Tensor:
    contexts: Contexts | None = None
    work = next(picture)
    while True:
        match work:
            case UNetRows():
                contexts = contexts or _read(unet, [work])  # a picture's prompts are the same at every step
                answer = unet(work.latents, _timesteps([work]), contexts)
            case Encode():
                answer = vae.encode(work.pixels, work.noise)
            case Decode():
                answer = vae.decode(work.latents)
        try:
            work = picture.send(answer)
        except StopIteration as stop:
            pixels: Tensor = stop.value
            return pixels


def _forward(unet: AnyUNet, works: Sequence[UNetRows]) -> Callable[[], Tensor]:
    """One forward of the UNet with all rows, its prompts read beforehand."""
    latents = torch.cat([work.latents for work in works])
    timesteps, contexts = _timesteps(works), _read(unet, works)
    return partial(unet, latents, timesteps, contexts)


def _timesteps(works: Sequence[UNetRows]) -> Tensor:
    return torch.tensor([work.timestep for work in works], dtype=torch.float32, device=works[0].latents.device)


def _read(unet: AnyUNet, works: Sequence[UNetRows]) -> Contexts:
    rows = [picture for picture, work in enumerate(works) for _ in work.context]
    spread = None if len(rows) == len(works) else torch.tensor(rows, device=works[0].latents.device)
    return unet.read(torch.cat([work.context for work in works]), spread)


def _image(pixels: Tensor) -> np.ndarray:
    levels = ((pixels[0].float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    image: np.ndarray = levels.permute(1, 2, 0).contiguous().cpu().numpy()
    return image
