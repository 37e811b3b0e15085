"""Which jobs may begin: those whose model is loaded. The others wait in order, and hold up nobody."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from sd_core.catalogue import Entry
from sd_core.engine.checkpoints import Checkpoints, Packages
from sd_core.engine.host import HostPool
from sd_core.engine.jobs import EngineJob
from sd_core.engine.kinds.unet import fullest
from sd_core.engine.memory import Memory, is_out_of_memory
from sd_core.engine.pool import Pool
from sd_core.engine.sharing import sharing
from sd_core.errors import OutOfMemory
from sd_core.pipeline.model import StableDiffusion


@dataclass(frozen=True)
class Read:
    """A checkpoint that has been read, with its compiled forwards, or why it could not be."""

    file: Entry
    result: tuple[StableDiffusion, Packages] | Exception


class Admission:
    """Lets jobs begin, and has the checkpoints read that they wait for: one at a time, on a thread of its own.

    A model is dropped only if no running job uses it. If there is no room for one, its jobs wait until others have
    ended, and jobs that arrive meanwhile wait behind them; when it is loaded, all jobs that wait for it begin. So jobs
    of two models take turns in groups, and none waits for ever. Used on the engine thread; `returned` is called on the
    reading one.
    """

    def __init__(self, pool: Pool, memory: Memory, checkpoints: Checkpoints, returned: Callable[[Read], None]) -> None:
        self._pool, self._memory, self._checkpoints, self._returned = pool, memory, checkpoints, returned
        self._reader = HostPool(1, "checkpoint")
        self._waiting: list[EngineJob] = []
        self._reading: Entry | None = None

    @property
    def waiting(self) -> Collection[EngineJob]:
        return tuple(self._waiting)

    def add(self, job: EngineJob) -> None:
        self._waiting.append(job)

    def ready(self, running: Collection[EngineJob]) -> list[EngineJob]:
        """The jobs that begin now, beside those that run; they wait no longer."""
        in_use = {job.file for job in running}
        ready: list[EngineJob] = []
        for job in self._drop_cancelled():
            if self._pool.holds(job.file):
                in_use.add(job.file)
                ready.append(job)
            elif self._reading is None and not self._begin_reading(job, in_use):
                break  # it waits for room, and those behind it wait too
        self._waiting = [job for job in self._waiting if job not in ready]
        return ready

    def take(self, read: Read) -> list[EngineJob]:
        """Let the model join the others. All jobs that wait for it begin now, or fail with its error."""
        self._reading = None
        concerned = [job for job in self._drop_cancelled() if job.file == read.file]
        if isinstance(read.result, Exception):
            for job in concerned:
                job.fail(read.result)
            concerned = []
        else:
            self._pool.add(*read.result)
        self._waiting = [job for job in self._waiting if job.file != read.file]
        return concerned

    def close(self) -> None:
        self._reader.close()

    def _drop_cancelled(self) -> list[EngineJob]:
        self._waiting = [job for job in self._waiting if not job.future.cancelled()]
        return self._waiting

    def _begin_reading(self, job: EngineJob, in_use: Collection[Entry]) -> bool:
        """Have the job's model read; false if it has to wait for room. If there can be none, the job fails."""
        if not self._pool.make_room(job.model_bytes, in_use, self._memory.usable):
            return False
        try:
            self._memory.require(job.model_bytes)
        except MemoryError as error:
            self._waiting.remove(job)
            job.fail(OutOfMemory(f"model: {job.file.name!r} does not fit into memory: {error}"))
            return True
        self._reading = job.file
        read = partial(_read, job.file, self._checkpoints, tuple(self._pool.models.values()))
        self._reader.submit(read, lambda result: self._returned(Read(job.file, result)))
        return True


def _read(
    file: Entry, checkpoints: Checkpoints, others: Collection[StableDiffusion]
) -> tuple[StableDiffusion, Packages]:
    try:
        model = sharing(checkpoints.load(file), others)
        return model, checkpoints.compiled(model)
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"model: {file.name!r} does not fit into memory beside what runs") from error
        raise


def budget_of(pool: Pool, memory: Memory, max_batch: int) -> float:
    """What models may take together: what they take now, and all that is free beside the fullest forward."""
    usable = memory.usable()
    if usable is None:
        return math.inf
    forward = max(fullest(model.networks.unet, model.info.native_size, max_batch) for model in pool.models.values())
    return pool.bytes + max(0, usable - forward)
