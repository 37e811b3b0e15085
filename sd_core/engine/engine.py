"""The thread that owns the networks: jobs go in from any thread, images come out as futures."""

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sd_core.additions import OWN_VAE
from sd_core.catalogue import Entry, Kind
from sd_core.engine.admission import Admission, Read, budget_of
from sd_core.engine.ahead import QueueAhead
from sd_core.engine.checkpoints import Checkpoints
from sd_core.engine.graphs import Bucket, Step
from sd_core.engine.host import HostPool
from sd_core.engine.jobs import EngineJob, prepared
from sd_core.engine.kinds import Kinds, kinds_of
from sd_core.engine.kinds.kind import Degraded
from sd_core.engine.memory import Memory
from sd_core.engine.pool import NO_PACKAGES, Pool
from sd_core.engine.runner import Runner
from sd_core.engine.scheduler import Running, Scheduler
from sd_core.errors import Broken, Busy
from sd_core.pipeline.attached import Needs
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import Prepared, read_prompt
from sd_core.request import Observe, Request, Result
from sd_core.volume import Library
from sd_core.work import HostTask

# Native size in pixels up to which a CPU generates a warm-up image too, because it takes less than seconds.
SMALL_MODEL = 256

HOST_THREADS = max(2, min(4, os.cpu_count() or 1))
LOADING_THREADS = 2


@dataclass(frozen=True)
class _Returned:
    """An image whose host task is done, with its result."""

    picture: Running
    result: Any


class Engine:
    """Generates the images of all jobs together: jobs join and leave between any two forwards.

    The first of `models` is the default one; a request names another by `model`, or one of `checkpoints`, which is read
    when a job first names it. Loaded models take `models_bytes` together at most, by default what is free less the
    fullest forward: those that no job uses are dropped for others. `max_batch` is how many guided images of native size
    share a forward of a UNet (two rows each), `max_jobs` how many jobs are held at once, running or waiting. `packages`
    are compiled forwards for a GPU, by model name. `library` has the files that jobs may name. `kinds` makes what runs
    each type of work. `on_failure` is called, on the engine thread, if the engine fails for good: from then on every
    job is answered with `Broken`, and only a new process can generate images.
    """

    def __init__(
        self,
        models: Sequence[StableDiffusion],
        max_batch: int,
        max_jobs: int = 64,
        packages: Mapping[str, Mapping[Bucket, Step]] = NO_PACKAGES,
        on_failure: Callable[[Exception], None] = lambda _: None,
        kinds: Callable[[Pool, int], Kinds] = kinds_of,
        library: Library | None = None,
        checkpoints: Checkpoints | None = None,
        models_bytes: int | None = None,
    ) -> None:
        self._pool = Pool(models, packages)
        self.checkpoints = Checkpoints(models) if checkpoints is None else checkpoints
        self._library = Library() if library is None else library
        self.failure: Exception | None = None
        self._on_failure = on_failure
        self._kinds = kinds(self._pool, max_batch)
        # On a CPU, weights take memory as they are first used.
        is_lazy = self._pool.device.type == "cpu"
        self._memory = Memory(self._pool.device, lambda: self._pool.networks if is_lazy else ())
        self._pool.budget = budget_of(self._pool, self._memory, max_batch) if models_bytes is None else models_bytes
        self._runner = Runner(self._memory, self._kinds.values(), (self._library,))
        self._scheduler = Scheduler()
        self._pool.in_use = lambda: {file for job in self._running_jobs for file in job.files}
        self._max_jobs, self._submitted, self._open, self._closed = max_jobs, 0, 0, False
        self._lock = threading.Lock()  # over the line above and `failure`
        self._arrivals: queue.SimpleQueue[EngineJob | _Returned | Read | None] = queue.SimpleQueue()
        self._ending = False  # whether all submitted jobs have arrived; used by the engine thread only
        self._ahead = QueueAhead(self._pool.device)
        self._host = HostPool(HOST_THREADS)
        self._loader = HostPool(LOADING_THREADS, "loader")
        self._admission = Admission(self._pool, self._memory, self.checkpoints, self._arrivals.put)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def models(self) -> Mapping[str, StableDiffusion]:
        """The loaded models by name."""
        return self._pool.models

    def submit(self, request: Request, observe: Observe | None = None) -> Future[Result]:
        """Queue a job and return its future. Cancelling the future ends the job before its next forward.

        Raises `InvalidRequest` for an unknown model or file, `Busy` if `max_jobs` are held, and `Broken`. The
        future fails with `OutOfMemory` if the device's memory does not hold the job even alone.
        """
        vae = None if request.vae is None else self._library.find(Kind.VAE, request.vae, "vae", OWN_VAE)
        files = self.checkpoints.files(request.model, vae)
        loaded = self._pool.loaded(next(iter(files)))
        needs = None if loaded is None else Needs.of(request, loaded, self._library)

        def prepare() -> Prepared:
            model = self._pool.model(files)
            return prepared(request, model, observe, needs or Needs.of(request, model, self._library))

        return self.run(prepare, request, files)

    def warm_up(self) -> None:
        """Run what the first job needs, so that it takes no longer than the second.

        On a GPU, and with a small model everywhere, that is a whole image; otherwise the text encoder alone, because a
        full-size forward on a CPU would take longer than it saves.
        """
        for model in list(self.models.values()):
            name, size = model.info.name, model.info.native_size
            request = Request(prompt="", seed=0, width=size, height=size, steps=2, model=name)
            if model.device.type != "cpu" or size <= SMALL_MODEL:
                self.submit(request).result()
            else:
                self.run(partial(read_prompt, "", model), request).result()

    def close(self) -> None:
        """Finish what was submitted before, then end the threads."""
        with self._lock:
            self._closed = True
        self._arrivals.put(None)
        self._thread.join()
        self._admission.close()
        self._loader.close()
        self._host.close()

    def run(
        self, prepare: Callable[[], Prepared], request: Request, files: Mapping[Entry, int] | None = None
    ) -> Future[Result]:
        """Run a request's images, whose coroutines `prepare` makes on the engine thread, once `files` are loaded.

        By default these are the model's. Raises `InvalidRequest` if it cannot be used, `Busy` and `Broken`.
        """
        files = self.checkpoints.files(request.model, None) if files is None else files
        future: Future[Result] = Future()
        with self._lock:
            if self.failure is not None:
                raise Broken("the engine has failed and this worker ends; its log says why")
            if self._closed:
                raise Busy("the worker is shutting down")
            if self._open >= self._max_jobs:
                raise Busy(f"the engine's queue is full: {self._open} jobs are running or waiting; try again later")
            self._open += 1
            self._submitted += 1
            job = EngineJob(self._submitted, request=request, future=future, prepare=prepare, files=files)
            self._arrivals.put(job)
        future.add_done_callback(self._release)
        return future

    def _release(self, _future: Future[Result]) -> None:
        with self._lock:
            self._open -= 1

    def _work(self) -> None:
        try:
            with torch.inference_mode():
                self._runner.warm_up()
                while not self._is_done:
                    self._take_arrivals()
                    self._drop_cancelled()
                    if batch := self._scheduler.next_batch():
                        self._run_tick(batch)
        except Exception as error:  # noqa: BLE001 - reported by _give_up
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Fail every job and refuse new ones, so that no caller waits for a thread that has ended."""
        with self._lock:
            self.failure = error
        jobs = {*self._scheduler.jobs, *self._admission.waiting}
        while not self._arrivals.empty():
            if isinstance(arrived := self._arrivals.get(), EngineJob):
                jobs.add(arrived)
        for job in jobs:
            if isinstance(job, EngineJob):
                job.fail(error)
        self._on_failure(error)

    @property
    def _is_done(self) -> bool:
        return self._ending and self._scheduler.is_empty and not self._admission.waiting

    def _take_arrivals(self) -> None:
        """Start new jobs and resume images whose host task is done, blocking while no image asks for a forward."""
        while not self._is_done:
            self._drop_cancelled()
            for job in self._admission.ready():
                self._begin(job)
            try:
                arrived = self._arrivals.get(block=not self._scheduler.has_work)
            except queue.Empty:
                return
            self._drop_cancelled()
            match arrived:
                case EngineJob():
                    self._admission.add(arrived)
                case Read():
                    for job in self._admission.take(arrived):
                        self._begin(job)
                case _Returned(picture, result) if self._scheduler.holds(picture):
                    self._advance(picture, result)
                case None:
                    self._ending = True

    @property
    def _running_jobs(self) -> list[EngineJob]:
        return [job for job in self._scheduler.jobs if isinstance(job, EngineJob)]

    def _begin(self, job: EngineJob) -> None:
        if job.future.cancelled():
            return
        job.clock.switch("encode")
        try:
            prepared = job.prepare()
            self._scheduler.usable_bytes = self._memory.usable()
        except Exception as error:  # noqa: BLE001 - the job's caller gets it
            job.fail(error)
            self._runner.require_device()
            return
        job.warnings, job.labels, job.images = prepared.warnings, prepared.labels, [None] * len(prepared.pictures)
        running = [Running(job, index, picture) for index, picture in enumerate(prepared.pictures)]
        for picture in running:
            self._scheduler.add(picture)
        for picture in running:
            if self._scheduler.holds(picture):  # false once the job has failed
                self._advance(picture, None)

    def _drop_cancelled(self) -> None:
        for job in self._running_jobs:
            if job.future.cancelled():
                self._drop(job)

    def _drop(self, job: EngineJob) -> None:
        for picture in self._scheduler.remove(job):
            picture.coroutine.close()

    def _run_tick(self, batch: list[Running]) -> None:
        self._ahead.limit()
        kind = batch[0].kind
        assert kind is not None
        answers, fits = self._runner.run(kind, [picture.work for picture in batch])
        if not fits:
            self._scheduler.shrink(batch)
        for picture, answer in zip(batch, answers, strict=True):
            if self._scheduler.holds(picture):  # false once another image has failed the job
                self._advance(picture, answer)

    def _advance(self, picture: Running, answer: Any) -> None:
        """Resume an image with its answer. An error in it fails its own job only."""
        job = picture.job
        assert isinstance(job, EngineJob)
        try:
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, Degraded):
                job.warn(answer.warning)
                answer = answer.answer
            try:
                self._ask(picture, job, picture.coroutine.send(answer))
            except StopIteration as end:
                self._scheduler.finish(picture)
                self._host.submit(end.value.run, partial(job.store, picture.index))
        except Exception as error:  # noqa: BLE001 - the job's caller gets it
            self._drop(job)
            job.fail(error)

    def _ask(self, picture: Running, job: EngineJob, asked: Any) -> None:
        while isinstance(asked, HostTask) and not asked.waits:
            asked = picture.coroutine.send(self._host.start(asked.run))
        if isinstance(asked, HostTask):
            self._scheduler.suspend(picture)
            pool = self._loader if asked.loads else self._host
            pool.submit(asked.run, lambda result: self._arrivals.put(_Returned(picture, result)))
            return
        kind = self._kinds[type(asked)]
        job.clock.switch(kind.phase)
        self._scheduler.ask(picture, asked, kind)
