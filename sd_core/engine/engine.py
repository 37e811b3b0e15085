"""The thread that owns the networks: jobs go in from any thread, pictures come out as futures."""

import queue
import threading
import time
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass, field

import torch

from sd_core.contracts import GenerationRequest, GenerationResult, OutOfMemory
from sd_core.engine.runner import Runner, drive
from sd_core.pipeline.images import to_image
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare

SMALL_MODEL = 256
"""Native size in pixels up to which a warm-up picture is drawn on a CPU too: there it takes a moment, not seconds."""


@dataclass(frozen=True)
class _Job:
    request: GenerationRequest
    future: Future[GenerationResult]
    submitted: float = field(default_factory=time.perf_counter)


class Engine:
    """Draws the jobs that it is given, one after another, the pictures of one job together.

    `max_batch` is how many pictures share a forward; a guided picture takes two of its rows.
    """

    def __init__(self, model: StableDiffusion, max_batch: int) -> None:
        self.model = model
        self._runner = Runner(model, max_batch)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> Future[GenerationResult]:
        """The job's future. Cancelling it ends the job before its next forward, also while it is drawn.

        The future fails with `OutOfMemory` where the device's memory does not hold the job.
        """
        future: Future[GenerationResult] = Future()
        self._jobs.put(_Job(request, future))
        return future

    def warm_up(self) -> None:
        """Runs what the first job will need, so that it takes no longer than the second.

        On a GPU, and with a small model everywhere, that is a whole picture; else the text encoder alone, because a
        full-size forward on a CPU would take longer than it saves.
        """
        size = self.model.info.native_size
        request = GenerationRequest(prompt="", seed=0, width=size, height=size, steps=2)
        if self.model.device.type != "cpu" or size <= SMALL_MODEL:
            self.submit(request).result()
        else:
            with torch.inference_mode():
                prepare(request, self.model)

    def close(self) -> None:
        """Draws what was submitted before, then ends the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        with torch.inference_mode():
            while (job := self._jobs.get()) is not None:
                try:
                    _settle(job.future, self._draw(job))
                except CancelledError:
                    continue
                except Exception as error:  # noqa: BLE001 - whatever it is belongs to the one who waits
                    _settle(job.future, _as_known(error, job.request))

    def _draw(self, job: _Job) -> GenerationResult:
        def stop_if_cancelled() -> None:
            if job.future.cancelled():
                raise CancelledError

        started = time.perf_counter()
        stop_if_cancelled()
        prepared = prepare(job.request, self.model)
        encoded = time.perf_counter()
        pixels, seconds = drive(prepared.pictures, self._runner, stop_if_cancelled)
        finishing = time.perf_counter()
        images = [to_image(picture) for picture in pixels]
        spent = {
            "queue": started - job.submitted,
            "encode": encoded - started + seconds.get("encode", 0.0),
            "denoise": seconds.get("denoise", 0.0),
            "decode": seconds.get("decode", 0.0) + time.perf_counter() - finishing,
        }
        timings = {kind: round(1000 * value, 3) for kind, value in spent.items()}
        return GenerationResult(images, job.request.seeds, timings, prepared.warnings)


def _settle(future: Future[GenerationResult], outcome: GenerationResult | BaseException) -> None:
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        if not future.cancelled():  # cancelled between its last forward and now: nobody waits for it
            raise


def _as_known(error: Exception, request: GenerationRequest) -> Exception:
    """Memory errors in words that the asker can act on; any other error as it is."""
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
    if not out_of_memory:
        return error
    size = f"{request.num_images} x {request.width}x{request.height}"
    known = OutOfMemory(f"the device's memory does not hold {size} pixels; ask for fewer or smaller pictures")
    known.__cause__ = error
    return known
