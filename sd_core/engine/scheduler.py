"""Which images share the next forward: room is counted in costs and bytes, and divided fairly among jobs."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from sd_core.engine.kinds.kind import Kind
from sd_core.work import Picture, Work

# Forwards after which the full room is tried again, once a forward did not fit into memory.
RECOVERY = 256


@dataclass(eq=False)
class Job:
    """What the scheduler knows of a job: its order of arrival, and the last tick that served it."""

    order: int
    served: int = -1


@dataclass(eq=False)
class Running:
    """An image being generated. While its host task runs, it has no work."""

    job: Job
    index: int
    coroutine: Picture
    work: Work | None = None
    kind: Kind[Any] | None = None
    served: int = -1


@dataclass
class Scheduler:
    """Jobs take turns: the one that was served longest ago leads a forward, and the others share the room that is left.

    The works of a forward have the same key. Every job with such work gets room for one image before any gets room for
    two. If there is room for all, all advance at every tick; if not, each of n jobs gets an n-th of the forwards, and
    none waits for another to end. Kinds that interrupt run at most every other tick while others wait.
    """

    # Memory that a forward may take; None if unknown.
    usable_bytes: int | None = None

    _running: list[Running] = field(default_factory=list)
    _tick: int = 0
    _interrupted: bool = False
    _shrunk: dict[Kind[Any], tuple[float, int]] = field(default_factory=dict)

    @property
    def jobs(self) -> set[Job]:
        return {picture.job for picture in self._running}

    @property
    def is_empty(self) -> bool:
        return not self._running

    @property
    def has_work(self) -> bool:
        """Whether any image asks for a forward now."""
        return any(picture.work is not None for picture in self._running)

    def add(self, picture: Running) -> None:
        self._running.append(picture)

    def ask(self, picture: Running, work: Work, kind: Kind[Any]) -> None:
        """Set the image's next work."""
        picture.work, picture.kind = work, kind

    def suspend(self, picture: Running) -> None:
        """Note that the image waits for something other than a forward."""
        picture.work = picture.kind = None

    def finish(self, picture: Running) -> None:
        self._running.remove(picture)

    def holds(self, picture: Running) -> bool:
        return picture in self._running

    def remove(self, job: Job) -> list[Running]:
        """Remove a job's images, and return them."""
        gone = [picture for picture in self._running if picture.job is job]
        self._running = [picture for picture in self._running if picture.job is not job]
        return gone

    def next_batch(self) -> list[Running]:
        """The images of the next forward; empty if no image asks for one."""
        waiting = [picture for picture in self._running if picture.work is not None]
        steps = [picture for picture in waiting if not _kind(picture).interrupts]
        candidates = steps if steps and self._interrupted else waiting
        if not candidates:
            return []
        lead = min(candidates, key=lambda each: (each.job.served, each.job.order, each.served, each.index))
        kind, key = _kind(lead), _key(lead)
        batch = self._fill(kind, _dealt(lead, [each for each in candidates if _key(each) == key]))
        self._tick += 1
        for picture in batch:
            picture.served = picture.job.served = self._tick
        self._interrupted = kind.interrupts
        return batch

    def shrink(self, batch: Sequence[Running]) -> None:
        """Note that this batch did not fit into memory: for a while, forwards of its kind are at most half as large."""
        kind = _kind(batch[0])
        cost = sum(kind.cost(picture.work) for picture in batch)
        self._shrunk[kind] = (cost / 2, self._tick + RECOVERY)

    def _fill(self, kind: Kind[Any], pictures: Iterator[Running]) -> list[Running]:
        """As many of these images as fit one forward, in order and at least one; equal works count once."""
        room = self._room(kind)
        usable: float = float("inf") if self.usable_bytes is None else self.usable_bytes
        batch: list[Running] = []
        counted: set[Hashable] = set()
        for picture in pictures:
            identity = kind.identity(picture.work)
            is_new = identity is None or identity not in counted
            cost, needed = (kind.cost(picture.work), kind.bytes(picture.work)) if is_new else (0, 0)
            if (cost <= room and needed <= usable) or not batch:
                batch.append(picture)
                counted.add(identity)
                room, usable = room - cost, usable - needed
        return batch

    def _room(self, kind: Kind[Any]) -> float:
        room, until = self._shrunk.get(kind, (kind.capacity, self._tick))
        return min(room, kind.capacity) if self._tick < until else kind.capacity


def _kind(picture: Running) -> Kind[Any]:
    assert picture.kind is not None
    return picture.kind


def _key(picture: Running) -> Hashable:
    kind = _kind(picture)
    return kind, kind.key(picture.work)


def _dealt(lead: Running, pictures: Sequence[Running]) -> Iterator[Running]:
    """One image of every job, then the next of every job; those served longest ago come first."""
    queues: dict[Job, list[Running]] = {lead.job: []}
    for picture in sorted(pictures, key=lambda picture: (picture.job.served, picture.job.order)):
        queues.setdefault(picture.job, []).append(picture)
    for queue in queues.values():
        queue.sort(key=lambda picture: (picture.served, picture.index))
    for dealt in zip_longest(*queues.values()):
        yield from (picture for picture in dealt if picture is not None)
