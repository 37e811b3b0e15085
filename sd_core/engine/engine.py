"""The thread that owns the networks: jobs go in from any thread, pictures come out as futures."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sd_core.engine.graphs import Bucket, Step
from sd_core.engine.memory import Memory, is_out_of_memory
from sd_core.engine.runner import Answer, Runner, Tiled
from sd_core.engine.scheduler import Job, Running, Scheduler
from sd_core.errors import Broken, Busy, OutOfMemory
from sd_core.pipeline.images import Drawn
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.picture import sigmas_of
from sd_core.pipeline.prepare import prepare
from sd_core.pipeline.preview import LatentToRGB, preview
from sd_core.pipeline.watch import Tell
from sd_core.request import Observe, Progress, Request, Result
from sd_core.work import Decode, UNetRows, Work

SMALL_MODEL = 256
"""Native size in pixels up to which a warm-up picture is drawn on a CPU too: there it takes a moment, not seconds."""

TICKS_AHEAD = 2
"""Forwards that a GPU has queued at most: enough to keep it busy, few enough to join and to cancel promptly."""

FINISHING_THREADS = 2

TILED = "memory held the picture only in tiles: it may differ a little from one drawn whole"


@dataclass(eq=False)
class _Job(Job):
    """A job from its submission to its last picture. Counts and moments belong to the drawing thread."""

    request: Request = field(kw_only=True)
    future: Future[Result] = field(kw_only=True)
    observe: Observe | None = field(kw_only=True)
    moments: dict[str, float] = field(default_factory=lambda: {"submitted": time.perf_counter()})
    warnings: list[str] = field(default_factory=list)
    steps_done: list[int] = field(default_factory=list)
    drawn: list[Drawn | None] = field(default_factory=list)
    foresee: Callable[[], Tensor] | None = None


class Engine:
    """Draws all jobs together: they join and leave between any two forwards.

    `max_batch` is how many guided pictures of native size share a forward of the UNet (two rows each); `max_jobs` how
    many jobs are held at once, running or waiting for their turn. `packages` are compiled forwards for a GPU.
    `on_failure` is called, on the drawing thread, where the engine fails for good: it answers every job with `Broken`
    from then on, and only a new process draws again.
    """

    def __init__(
        self,
        model: StableDiffusion,
        max_batch: int,
        max_jobs: int = 64,
        packages: Mapping[Bucket, Step] | None = None,
        on_failure: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.failure: Exception | None = None
        self._on_failure = on_failure
        self._memory = Memory.of(model)
        self._runner = Runner(model, self._memory, packages)
        self._scheduler = Scheduler(max_batch, model.info.native_size**2)
        self._max_jobs, self._submitted, self._held, self._closed = max_jobs, 0, 0, False
        self._door = threading.Lock()  # over the line above
        self._arrivals: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queued: deque[torch.cuda.Event] = deque()
        self._drawn: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # Not an executor's: those end before the interpreter's exit handlers, and with them jobs that are still drawn.
        self._finishing = [
            threading.Thread(target=self._finish, name=f"finishing-{index}", daemon=True)
            for index in range(FINISHING_THREADS)
        ]
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        for thread in (*self._finishing, self._thread):
            thread.start()

    def submit(self, request: Request, observe: Observe | None = None) -> Future[Result]:
        """The job's future. Cancelling it ends the job before its next forward, also while it is drawn.

        Raises `Busy` where `max_jobs` are held, and `Broken`. The future fails with `OutOfMemory` where the device's
        memory does not hold the job even alone.
        """
        future: Future[Result] = Future()
        with self._door:
            if self.failure is not None:
                raise Broken("the worker cannot draw any more and ends; its log says why")
            if self._closed:
                raise Busy("the worker is shutting down")
            if self._held >= self._max_jobs:
                raise Busy(f"{self._held} jobs are being drawn or wait already; try again later")
            self._held += 1
            self._submitted += 1
            job = _Job(self._submitted, request=request, future=future, observe=observe)
            self._arrivals.put(job)
        future.add_done_callback(self._let_go)
        return future

    def warm_up(self) -> None:
        """Runs what the first job will need, so that it takes no longer than the second.

        On a GPU, and with a small model everywhere, that is a whole picture; else the text encoder alone, because a
        full-size forward on a CPU would take longer than it saves.
        """
        size = self.model.info.native_size
        request = Request(prompt="", seed=0, width=size, height=size, steps=2)
        if self.model.device.type != "cpu" or size <= SMALL_MODEL:
            self.submit(request).result()
        else:
            with torch.inference_mode():
                prepare(request, self.model)

    def close(self) -> None:
        """Draws what was submitted before, then ends the threads."""
        with self._door:
            self._closed = True
        self._arrivals.put(None)
        self._thread.join()
        for _ in self._finishing:
            self._drawn.put(None)
        for thread in self._finishing:
            thread.join()

    def _let_go(self, _future: Future[Result]) -> None:
        with self._door:
            self._held -= 1

    def _work(self) -> None:
        open_ = True
        try:
            with torch.inference_mode():
                self._runner.warm_up()
                while open_ or self._scheduler.running:
                    open_ = self._let_in() and open_
                    self._drop_cancelled()
                    if batch := self._scheduler.next_batch():
                        self._tick(batch)
        except Exception as error:  # noqa: BLE001 - as below: it is told, and nobody waits for this thread
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Fails every job that is held, and takes no more: nobody shall wait for a thread that has ended."""
        with self._door:
            self.failure = error
        held = {picture.job for picture in self._scheduler.running}
        while not self._arrivals.empty():
            if (arrived := self._arrivals.get()) is not None:
                held.add(arrived)
        for job in held:
            if isinstance(job, _Job) and not job.future.done():
                _settle(job.future, error)
        self._on_failure(error)

    def _let_in(self) -> bool:
        """Begins the jobs that have arrived, waiting for one where nothing else is to do; False once closed."""
        job: _Job | None
        while True:
            try:
                job = self._arrivals.get(block=not self._scheduler.running)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._begin(job)

    def _begin(self, job: _Job) -> None:
        if job.future.cancelled():
            return
        job.moments["begun"] = time.perf_counter()
        try:
            tell = partial(_teller, job, job.observe, self.model.latent_to_rgb) if job.observe else None
            prepared = prepare(job.request, self.model, tell)
            job.warnings, job.drawn = prepared.warnings, [None] * len(prepared.pictures)
            job.steps_done = [0] * len(prepared.pictures)
            asked = [self._asked(job, next(picture)) for picture in prepared.pictures]
            self._scheduler.memory_room = self._memory.room()
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one who waits
            _settle(job.future, _as_known(error, job.request))
            self._runner.require_device()
            return
        self._scheduler.add(
            Running(job, index, making, work)
            for index, (making, work) in enumerate(zip(prepared.pictures, asked, strict=True))
        )

    def _drop_cancelled(self) -> None:
        for job in {picture.job for picture in self._scheduler.running}:
            if isinstance(job, _Job) and job.future.cancelled():
                self._close(job)

    def _close(self, job: Job) -> None:
        for picture in self._scheduler.remove(job):
            picture.making.close()

    def _tick(self, batch: list[Running]) -> None:
        self._wait_for_room_ahead()
        answers, held = self._runner.run([picture.asked for picture in batch])
        if not held:
            self._scheduler.shrink(batch)
        for picture, answer in zip(batch, answers, strict=True):
            job = picture.job
            assert isinstance(job, _Job)
            try:
                self._advance(picture, job, answer)
            except Exception as error:  # noqa: BLE001 - as in _begin
                self._close(job)
                _settle(job.future, _as_known(error, job.request))

    def _advance(self, picture: Running, job: _Job, answer: Answer) -> None:
        """Hands a picture its answer and takes its next question. Raises what the answer or the sampler raises."""
        if job.future.done():
            return  # failed by another of its pictures
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Tiled):
            answer = answer.tensor
            if TILED not in job.warnings:
                job.warnings.append(TILED)
        try:
            picture.asked = self._asked(job, picture.making.send(answer))
        except StopIteration as end:
            self._scheduler.running.remove(picture)
            job.drawn[picture.index] = Drawn(end.value)
            if all(job.drawn):
                self._drawn.put(job)

    def _asked(self, job: _Job, work: Work) -> Work:
        """Notes when the job's first picture came to its steps, and its last to its decoding."""
        if isinstance(work, UNetRows):
            job.moments.setdefault("denoising", time.perf_counter())
        if isinstance(work, Decode):
            job.moments["decoding"] = time.perf_counter()
        return work

    def _finish(self) -> None:
        while (job := self._drawn.get()) is not None:
            try:
                _settle(job.future, _result(job))
            except Exception as error:  # noqa: BLE001 - as in _begin
                _settle(job.future, error)

    def _wait_for_room_ahead(self) -> None:
        if self.model.device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > TICKS_AHEAD:
            self._queued.popleft().synchronize()


def _teller(job: _Job, observe: Observe, latent_to_rgb: LatentToRGB, index: int) -> Tell:
    """What picture `index` tells of its steps: the job's observer hears of those that all its pictures have done."""
    steps = len(sigmas_of(job.request)) - 1

    def tell(step: int, foresee: Callable[[], Tensor]) -> None:
        before = min(job.steps_done)
        job.steps_done[index] = step
        if index == 0:
            job.foresee = foresee
        if min(job.steps_done) > before and job.foresee is not None:
            percent = 100 * sum(job.steps_done) // (steps * len(job.steps_done))
            observe(Progress(min(job.steps_done), steps, percent, partial(_preview, job.foresee, latent_to_rgb)))

    return tell


def _preview(foresee: Callable[[], Tensor], latent_to_rgb: LatentToRGB) -> np.ndarray:
    with torch.inference_mode():
        return preview(foresee(), latent_to_rgb)


def _result(job: _Job) -> Result:
    """The pictures as they come off the device, and where the time went. Raises `NotFinite`."""
    images = [drawn.image() for drawn in job.drawn if drawn is not None]
    begun, denoising, decoding = job.moments["begun"], job.moments["denoising"], job.moments["decoding"]
    spent = {
        "queue": begun - job.moments["submitted"],
        "encode": denoising - begun,
        "denoise": decoding - denoising,
        "decode": time.perf_counter() - decoding,
    }
    timings = {kind: round(1000 * seconds, 3) for kind, seconds in spent.items()}
    return Result(images, job.request.seeds, timings, job.warnings)


def _settle(future: Future[Result], outcome: Result | BaseException) -> None:
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        if not future.cancelled():  # cancelled between its last forward and now: nobody waits for it
            raise


def _as_known(error: Exception, request: Request) -> Exception:
    """Memory errors in words that the asker can act on; any other error as it is."""
    if not is_out_of_memory(error):
        return error
    size = f"{request.num_images} x {request.width}x{request.height}"
    known = OutOfMemory(f"the device's memory does not hold {size} pixels; ask for fewer or smaller pictures")
    known.__cause__ = error
    return known
