"""Kinds of work without networks, for tests of the scheduler, the runner and the engine."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sd_core.engine.kinds.kind import Kind


@dataclass(frozen=True)
class Doubling:
    """Asks for twice a number. Works of one `shape` can share a forward; works of one `same` are the same work."""

    number: float
    shape: str = "a"
    cost: float = 1
    bytes: int = 0
    same: Hashable = None
    parts: int = 1


@dataclass(eq=False)
class DoublingKind(Kind[Doubling]):
    """Doubles numbers, and records those of every forward. `check` may raise to fail a forward."""

    room: float = 4
    interrupts: bool = False  # type: ignore[misc]
    check: Callable[[Sequence[Doubling]], None] = lambda _works: None
    forwards: list[list[float]] = field(default_factory=list)
    in_parts: list[float] = field(default_factory=list)
    released: int = 0
    warmed_up: int = 0

    phase = "denoise"

    @property
    def capacity(self) -> float:
        return self.room

    def key(self, work: Doubling) -> Hashable:
        return work.shape

    def identity(self, work: Doubling) -> Hashable | None:
        return work.same

    def cost(self, work: Doubling) -> float:
        return work.cost

    def bytes(self, work: Doubling) -> int:
        return work.bytes

    def run(self, works: Sequence[Doubling]) -> list[Any]:
        self.forwards.append([work.number for work in works])
        self.check(works)
        return [2 * work.number for work in works]

    def smallest(self, work: Doubling) -> Doubling | None:
        return None if work.parts == 1 else Doubling(work.number, bytes=work.bytes // work.parts)

    def run_in_parts(self, work: Doubling) -> float:
        self.in_parts.append(work.number)
        return 2 * work.number

    def warm_up(self) -> None:
        self.warmed_up += 1

    def release(self) -> None:
        self.released += 1
