"""A stand-in for the engine, for tests of what surrounds it."""

import threading
from concurrent.futures import Future

import numpy as np

from sd_core.errors import Busy
from sd_core.request import Observe, Progress, Request, Result


class StandInEngine:
    """Answers every request with gradients whose brightness depends on the seed, and records the requests.

    Set `error` to fail every job, `hangs` to leave every job unanswered (`hanging` is its future), `full` to refuse
    jobs, `failure` to make the engine itself count as broken.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.error: BaseException | None = None
        self.hangs = False
        self.hanging: Future[Result] = Future()
        self.asked = threading.Event()
        self.observers: list[Observe | None] = []
        self.full = False
        self.failure: Exception | None = None

    def submit(self, request: Request, observe: Observe | None = None) -> Future[Result]:
        if self.full:
            raise Busy("enough jobs wait already")
        self.requests.append(request)
        self.observers.append(observe)
        self.asked.set()
        if self.hangs:
            return self.hanging
        future: Future[Result] = Future()
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(self.drawn(request))
        return future

    def drawn(self, request: Request) -> Result:
        images = [gradient(request.width, request.height, seed) for seed in request.seeds]
        timings = {"queue": 0.5, "encode": 1.25, "denoise": 20.0, "decode": 3.0}
        return Result(images, request.seeds, timings, ["drawn by a stand-in"])

    def tell(self, step: int) -> None:
        """Report a step of the last job to its observer, if it has one."""
        observe = self.observers[-1]
        if observe is not None:
            observe(Progress(step, 10, 10 * step, lambda: gradient(8, 8, step)))

    def close(self) -> None:
        pass


def gradient(width: int, height: int, seed: int) -> np.ndarray:
    """uint8 (height, width, 3), the same for the same seed."""
    row = (np.arange(width) * 3 + seed) % 256
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)
