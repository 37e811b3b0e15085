"""Which jobs may begin: those whose model is loaded. The others wait in order, and hold up nobody."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from sd_core.catalogue import Entry
from sd_core.engine.checkpoints import Checkpoints, Packages
from sd_core.engine.host import HostPool
from sd_core.engine.jobs import EngineJob
from sd_core.engine.kinds.unet import fullest
from sd_core.engine.memory import Memory, is_out_of_memory
from sd_core.engine.pool import Loaded, Pool
from sd_core.engine.sharing import Held, sharing
from sd_core.errors import OutOfMemory
from sd_core.pipeline.model import StableDiffusion


@dataclass(frozen=True)
class Read:
    """A file that has been read, with the compiled forwards of its UNet, or why it could not be."""

    file: Entry
    result: tuple[Loaded, Packages] | Exception


class Admission:
    """Lets jobs begin, and has the files read that they wait for: one at a time, on a thread of its own.

    What a running job uses is not dropped. If there is no room for a file, its jobs wait until others have ended, and
    jobs that arrive meanwhile wait behind them; when it is loaded, all jobs that wait for it begin. So jobs of two
    models take turns in groups, and none waits for ever. Used on the engine thread; `returned` is called on the reading
    one.
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

    def ready(self) -> list[EngineJob]:
        """The jobs that begin now; they wait no longer."""
        in_use = set(self._pool.in_use())
        ready: list[EngineJob] = []
        self._drop_cancelled()
        for job in tuple(self._waiting):
            missing = [file for file in job.files if not self._pool.holds([file])]
            if not missing:
                in_use.update(job.files)
                ready.append(job)
            elif self._reading is None and not self._begin_reading(missing[0], job, in_use):
                break  # it waits for room, and those behind it wait too
        self._waiting = [job for job in self._waiting if job not in ready]
        return ready

    def take(self, read: Read) -> list[EngineJob]:
        """Let what was read join the rest: jobs that lacked nothing else begin now. If it failed, all its jobs fail."""
        self._reading = None
        self._drop_cancelled()
        concerned = [job for job in self._waiting if read.file in job.files]
        if isinstance(read.result, Exception):
            for job in concerned:
                job.fail(read.result)
        else:
            self._pool.add(*read.result)
            concerned = [job for job in concerned if self._pool.holds(job.files)]
        self._waiting = [job for job in self._waiting if job not in concerned]
        return [job for job in concerned if not job.future.done()]

    def close(self) -> None:
        self._reader.close()

    def _drop_cancelled(self) -> None:
        self._waiting = [job for job in self._waiting if not job.future.cancelled()]

    def _begin_reading(self, file: Entry, job: EngineJob, in_use: Collection[Entry]) -> bool:
        """Have a file of the job read; false if it has to wait for room. If there can be none, the job fails."""
        needed = job.files[file]
        if not self._pool.make_room(needed, in_use, job.files, self._memory.usable):
            return False
        try:
            self._memory.require(needed)
        except MemoryError as error:
            self._waiting.remove(job)
            job.fail(OutOfMemory(f"{file.kind} {file.name!r} does not fit into memory: {error}"))
            return True
        self._reading = file
        read = partial(_read, file, self._checkpoints, self._pool.models, self._pool.by_key)
        self._reader.submit(read, lambda result: self._returned(Read(file, result)))
        return True


def _read(
    file: Entry, checkpoints: Checkpoints, models: Mapping[str, StableDiffusion], held: Held
) -> tuple[Loaded, Packages]:
    try:
        loaded = sharing(checkpoints.load(file, models), held)
        return loaded, checkpoints.compiled(loaded) if isinstance(loaded, StableDiffusion) else {}
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"{file.kind} {file.name!r} does not fit into memory beside what runs") from error
        raise


def budget_of(pool: Pool, memory: Memory, max_batch: int) -> float:
    """What models may take together: what they take now, and all that is free beside the fullest forward."""
    usable = memory.usable()
    if usable is None:
        return math.inf
    forward = max(fullest(model.networks.unet, model.info.native_size, max_batch) for model in pool.models.values())
    return pool.bytes + max(0, usable - forward)
