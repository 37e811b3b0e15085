"""What the scheduler and the runner need to know of a kind of work; they know none of them by name."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

W = TypeVar("W")


@dataclass(frozen=True)
class Degraded:
    """An answer that was computed in another way than usual, for lack of memory; `warning` says what may differ."""

    answer: Any
    warning: str


class Kind(ABC, Generic[W]):
    """One kind of work: which works share a forward, what it costs, how it runs, and how it runs with little memory."""

    phase: ClassVar[str]
    """The phase of a job, as `timings_ms` names it, that this work belongs to."""

    interrupts: ClassVar[bool] = True
    """Whether it delays the steps of others: then it runs at most every other tick while they wait."""

    @property
    @abstractmethod
    def capacity(self) -> float:
        """What one forward holds at most, in units of `cost`; a single work always runs."""

    @abstractmethod
    def key(self, work: W) -> Hashable:
        """Works with equal keys can share a forward."""

    @abstractmethod
    def cost(self, work: W) -> float:
        """The part of the capacity that a work takes."""

    @abstractmethod
    def bytes(self, work: W) -> int:
        """Memory that a forward holds at its peak for this work, beyond weights."""

    @abstractmethod
    def run(self, works: Sequence[W]) -> Sequence[Any]:
        """One forward: the answer to each work, in order."""

    def identity(self, work: W) -> Hashable | None:  # noqa: ARG002
        """Works with equal identities are the same work, computed once; None if it is like no other."""
        return None

    def smallest(self, work: W) -> W | None:  # noqa: ARG002
        """The largest part that `run_in_parts` holds in memory at a time; None if the work has no parts."""
        return None

    def run_in_parts(self, work: W) -> Any:
        """The answer to one work whose forward does not fit in memory, possibly `Degraded`; only if it has parts."""
        raise ValueError(f"this work has no parts: {work}")

    def warm_up(self) -> None:
        """Prepare what the first works would wait for."""

    def release(self) -> None:
        """Free the memory of what is kept for speed alone."""
