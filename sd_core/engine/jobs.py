"""A job in the engine: its finished images, its progress, and the time spent in each phase."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from torch import Tensor

from sd_core.catalogue import Entry
from sd_core.engine.memory import is_out_of_memory
from sd_core.engine.scheduler import Job
from sd_core.errors import OutOfMemory
from sd_core.pipeline.attached import Needs
from sd_core.pipeline.editing import meant
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import Prepared, prepare
from sd_core.pipeline.preview import Render, render_of
from sd_core.pipeline.sample import Run
from sd_core.pipeline.watch import OnStep
from sd_core.request import Observe, Progress, Request, Result

PHASES = ("queue", "encode", "denoise", "decode")


class PhaseClock:
    """Adds up the time that a job spends in each phase."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = PHASES[0], time.perf_counter()

    def switch(self, phase: str) -> None:
        """End the current phase and begin this one."""
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def milliseconds(self) -> dict[str, float]:
        """The time in each phase until now."""
        self.switch(self._phase)
        return {phase: round(1000 * seconds, 3) for phase, seconds in self._seconds.items()}


@dataclass(eq=False)
class EngineJob(Job):
    """A job from its submission to its result. Only its future may be used outside the engine thread.

    It begins by `prepare`, once the files of its model are loaded: a checkpoint, and perhaps a VAE. `files` has the
    bytes that each of them takes then.
    """

    request: Request = field(kw_only=True)
    future: Future[Result] = field(kw_only=True)
    prepare: Callable[[], Prepared] = field(kw_only=True)
    files: Mapping[Entry, int] = field(kw_only=True)
    clock: PhaseClock = field(default_factory=PhaseClock)
    warnings: list[str] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)
    images: list[np.ndarray | None] = field(default_factory=list)

    def warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    def store(self, index: int, image: np.ndarray | Exception) -> None:
        """Take the finished image uint8 (H, W, 3) of this index, or its error. The last image resolves the future."""
        if isinstance(image, Exception):
            self.fail(image)
            return
        self.images[index] = image
        images = [each for each in self.images if each is not None]
        if len(images) == len(self.images):
            milliseconds = self.clock.milliseconds()
            self._resolve(Result(images, self.request.seeds, milliseconds, self.warnings, self.labels))

    def fail(self, error: Exception) -> None:
        """Resolve the future with the error; memory errors are reworded so that the caller can act on them."""
        if is_out_of_memory(error) and not isinstance(error, OutOfMemory):
            request = self.request
            size = "{} x {}x{}".format(request.num_images, *request.generated_size)
            cause = error
            error = OutOfMemory(f"the device's memory does not hold {size} pixels; ask for fewer or smaller images")
            error.__cause__ = cause
        self._resolve(error)

    def _resolve(self, outcome: Result | Exception) -> None:
        try:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:
            # Cancelled after its last forward, or already failed by another of its images: the outcome is not needed.
            return


def prepared(request: Request, model: StableDiffusion, observe: Observe | None, needs: Needs) -> Prepared:
    """A job's pictures, whose steps are reported to its observer. Raises `InvalidRequest` if the model cannot do it."""
    request = meant(request, model)
    if observe is None:
        return prepare(request, model, None, needs)
    runs = Run.all_of(request)
    steps, calls = sum(len(run.grid(model)) - 1 for run in runs), sum(run.calls(model) for run in runs)
    render = render_of(model.networks.vae, model.latent_to_rgb, tiling=request.tiling)
    progress = JobProgress(observe, request.num_images, steps, calls, render)
    return prepare(request, model, progress.on_step, needs)


class JobProgress:
    """Reports a job's steps to its observer, each as soon as all images of the job have done it.

    `calls` and `steps` are those of one image. `percent` counts calls, because a step of some samplers takes several.
    """

    def __init__(self, observe: Observe, images: int, steps: int, calls: int, render: Render) -> None:
        self._observe, self._render = observe, render
        self._steps, self._calls = steps, calls
        self._steps_done, self._calls_done = [0] * images, [0] * images
        self._predicted: Tensor | None = None

    def on_step(self, index: int) -> OnStep:
        """The function that image `index` calls after each of its steps."""
        return partial(self._after, index)

    def _after(self, index: int, steps: int, calls: int, predicted_x0: Tensor) -> None:
        before = min(self._steps_done)
        self._steps_done[index], self._calls_done[index] = steps, calls
        if index == 0:
            self._predicted = predicted_x0
        if min(self._steps_done) > before and self._predicted is not None:
            percent = 100 * sum(self._calls_done) // (self._calls * len(self._calls_done))
            preview = partial(self._render, self._predicted)
            self._observe(Progress(min(self._steps_done), self._steps, percent, preview))
