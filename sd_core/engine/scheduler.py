"""Which pictures share the next forward: room counted in rows and pixels, dealt out fairly among jobs."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from sd_core.engine.memory import pixels_of
from sd_core.work import Decode, Encode, Picture, UNetRows, Work

VAE_PIXELS = 512 * 512
"""Pixels that one forward of the VAE holds, so that running steps wait for no more than about one step's time."""

RECOVERY = 256
"""Forwards after which the full room is tried again where memory once did not hold it."""


@dataclass(eq=False)
class Job:
    """A job as the scheduler sees it: the order of arrival, and the last tick that served it."""

    order: int
    served: int = -1


@dataclass(eq=False)
class Running:
    """A picture in the making and what it asks for now."""

    job: Job
    index: int
    making: Picture
    asked: Work
    served: int = -1


@dataclass
class Scheduler:
    """Jobs take turns: the one that was served longest ago leads a forward, the room left is dealt to the others.

    A forward holds work of one kind and shape. Every job with work of that shape gets room for one picture before
    any gets it for two. So with room for all, all advance at every tick; without, each of n jobs gets an n-th, and
    none waits for another to end. Between two forwards of the VAE the UNet has a turn.

    `max_batch` guided pictures (two rows each) of `native_pixels` fit one forward; larger pictures take as much more
    room as they have pixels. `memory_room` is what the device's memory holds of each kind, where that is known.
    """

    max_batch: int
    native_pixels: int
    running: list[Running] = field(default_factory=list)
    memory_room: Mapping[type[Work], int] = field(default_factory=dict)
    _tick: int = 0
    _vae_before: bool = False
    _shrunk: dict[type, tuple[int, int]] = field(default_factory=dict)

    def add(self, pictures: Iterable[Running]) -> None:
        self.running.extend(pictures)

    def remove(self, job: Job) -> list[Running]:
        """Takes a job's pictures out, and returns them."""
        gone = [picture for picture in self.running if picture.job is job]
        self.running = [picture for picture in self.running if picture.job is not job]
        return gone

    def next_batch(self) -> list[Running]:
        """The pictures of the next forward, at least one; empty where nothing runs."""
        steps = [picture for picture in self.running if isinstance(picture.asked, UNetRows)]
        candidates = steps if steps and self._vae_before else self.running
        if not candidates:
            return []
        lead = min(
            candidates, key=lambda picture: (picture.job.served, picture.job.order, picture.served, picture.index)
        )
        kind = batch_key(lead.asked)
        batch: list[Running] = []
        room = self._room(type(lead.asked))
        for picture in _dealt(lead, [other for other in candidates if batch_key(other.asked) == kind]):
            cost = self.cost(picture.asked)
            if cost <= room or not batch:
                batch.append(picture)
                room -= cost
        self._tick += 1
        for picture in batch:
            picture.served = picture.job.served = self._tick
        self._vae_before = not isinstance(lead.asked, UNetRows)
        return batch

    def cost(self, work: Work) -> int:
        """The room that a piece of work takes, in pixels times rows."""
        match work:
            case UNetRows(context=context):
                return max(len(context) * self.native_pixels, pixels_of(work))
            case Encode():
                return 0  # one picture is encoded, for all that share it
            case _:
                return pixels_of(work)

    def shrink(self, batch: Sequence[Running]) -> None:
        """Memory did not hold this batch: for a while, no forward of its kind is more than half as large."""
        kind = type(batch[0].asked)
        self._shrunk[kind] = (sum(self.cost(picture.asked) for picture in batch) // 2, self._tick + RECOVERY)

    def _room(self, kind: type[Work]) -> int:
        full = 2 * self.max_batch * self.native_pixels if kind is UNetRows else max(VAE_PIXELS, self.native_pixels)
        full = min(full, self.memory_room.get(kind, full))
        room, until = self._shrunk.get(kind, (full, self._tick))
        return min(room, full) if self._tick < until else full


def batch_key(work: Work) -> Hashable:
    """Work with equal keys can share a forward."""
    match work:
        case UNetRows(latents=latents, context=context):
            return UNetRows, latents.shape, context.shape[1:]
        case Encode(pixels=pixels):
            return Encode, id(pixels)
        case Decode(latents=latents):
            return Decode, latents.shape


def _dealt(lead: Running, pictures: Sequence[Running]) -> Iterator[Running]:
    """One picture of every job, then the next of every job; whoever was served longest ago comes first."""
    hands: dict[Job, list[Running]] = {lead.job: []}
    for picture in sorted(pictures, key=lambda picture: (picture.job.served, picture.job.order)):
        hands.setdefault(picture.job, []).append(picture)
    for hand in hands.values():
        hand.sort(key=lambda picture: (picture.served, picture.index))
    for dealt in zip_longest(*hands.values()):
        yield from (picture for picture in dealt if picture is not None)
