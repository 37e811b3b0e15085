"""Names of samplers and schedules, in the spellings of every tool that users come from."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeVar

from sd_core.errors import InvalidRequest
from sd_core.sampling.solver import Schedule, Solver

DEFAULT = "default"
AUTOMATIC = "automatic"  # A1111's word for the sampler's own schedule
MAX_LISTED = 10  # names that an error lists before it only counts them
MAX_SHOWN = 60  # characters of an unknown name that an error repeats

Value = TypeVar("Value")


@dataclass(frozen=True)
class Meaning:
    """What a spelling of a sampler stands for."""

    solver: str
    schedule: str | None  # the one that is part of the name, perhaps AUTOMATIC
    otherwise: str  # the schedule if none is given


class Registry:
    """Solvers and schedules with one table of their spellings, made from the two tables that are given.

    An exact id such as `dpmpp_2m` or `dpmpp_2m_karras` is canonical: without a schedule it means `default`. Every other
    spelling is compared by its letters and digits. One that equals A1111's label brings A1111's default schedule, any
    other one `default`. Raises `ValueError` if a spelling has two meanings, or if a default is a schedule that its
    sampler cannot follow.
    """

    def __init__(
        self, solvers: Mapping[str, Solver], schedules: Mapping[str, Schedule], default: tuple[str, str]
    ) -> None:
        self.default = default
        self.schedules = MappingProxyType(dict(schedules))
        self.solvers = MappingProxyType({name: _with_schedules(solver, schedules) for name, solver in solvers.items()})
        for name, solver in self.solvers.items():
            _require(name, solver, solver.a1111_schedule)
        _require(default[0], self.solvers[default[0]], default[1])
        self._schedule_spellings = _table(self._spelled_schedules())
        self._ids = _table(self._canonical_ids())
        self._sampler_spellings = _table(self._spelled_samplers())

    def resolve(self, sampler: str | None, schedule: str | None) -> tuple[str, str]:
        """Any spelling of a sampler and, apart or in its name, of a schedule -> (solver, schedule).

        Without a sampler, the default one. "Automatic" is A1111's schedule for the sampler, unless the sampler's name
        has a schedule. Raises `InvalidRequest`, which names the nearest known names.
        """
        wanted = None if schedule is None else self._schedule(schedule)
        meaning = Meaning(self.default[0], None, self.default[1]) if sampler is None else self._sampler(sampler)
        solver = self.solvers[meaning.solver]
        given = {name for name in (wanted, meaning.schedule) if name is not None}
        named = given - {AUTOMATIC}
        if len(named) > 1:
            raise InvalidRequest(
                f"sampler {_shown(sampler or '')} names the schedule {meaning.schedule}, "
                f"but schedule is {_shown(schedule or '')}"
            )
        resolved = next(iter(named), solver.a1111_schedule if given else meaning.otherwise)
        if resolved not in solver.schedules:
            known = ", ".join(solver.schedules)
            raise InvalidRequest(f"sampler {meaning.solver} has no schedule {resolved!r}; it has {known}")
        return meaning.solver, resolved

    def is_schedule(self, name: str) -> bool:
        """Whether this is a spelling of a schedule, "Automatic" included."""
        return fold(name) in self._schedule_spellings

    def is_sampler(self, name: str) -> bool:
        """Whether this is a spelling of a sampler, with or without a schedule in it; a schedule's own id is not."""
        return name in self._ids or (fold(name) in self._sampler_spellings and name not in self.schedules)

    def schedule_names(self) -> list[str]:
        return list(self.schedules)

    def sampler_names(self) -> list[str]:
        """Every canonical name, `euler` and `euler_karras` alike."""
        return list(self._ids)

    def a1111_label(self, solver: str, schedule: str) -> str:
        """A1111's name of a sampler with its schedule, which resolves to the same two."""
        entry = self.solvers[solver]
        if schedule == DEFAULT == entry.a1111_schedule:
            return entry.label
        return f"{entry.label} {self.schedules[schedule].label}"

    def _schedule(self, name: str) -> str:
        found = self._schedule_spellings.get(fold(name))
        if found is None:
            raise InvalidRequest(
                f"schedule is {_shown(name)}; {_nearest(name, self.schedule_names(), self.schedule_names())}"
            )
        return found

    def _sampler(self, name: str) -> Meaning:
        found = self._ids.get(name) or self._sampler_spellings.get(fold(name))
        if found is None:
            raise InvalidRequest(
                f"sampler is {_shown(name)}; {_nearest(name, self.sampler_names(), list(self.solvers))}"
            )
        return found

    def _spelled_schedules(self) -> Iterator[tuple[str, str]]:
        yield fold(AUTOMATIC), AUTOMATIC
        for name, schedule in self.schedules.items():
            yield from ((fold(spelling), name) for spelling in (name, schedule.label, *schedule.aliases))

    def _canonical_ids(self) -> Iterator[tuple[str, Meaning]]:
        for name, solver in self.solvers.items():
            for schedule in solver.schedules:
                in_name = None if schedule == DEFAULT else schedule
                yield joined_name(name, schedule), Meaning(name, in_name, DEFAULT)

    def _spelled_samplers(self) -> Iterator[tuple[str, Meaning]]:
        for name, solver in self.solvers.items():
            for spelling, otherwise in _spellings(name, solver):
                yield spelling, Meaning(name, None, otherwise)
                # Also schedules that the solver cannot follow: the error then says that, and not that it is unknown.
                for ending, schedule in self._schedule_spellings.items():
                    yield spelling + ending, Meaning(name, schedule, DEFAULT)


def joined_name(solver: str, schedule: str) -> str:
    """The canonical name of a sampler with its schedule."""
    return solver if schedule == DEFAULT else f"{solver}_{schedule}"


def fold(name: str) -> str:
    """A name's letters and digits in lower case, "+" as "p", without the word "scheduler"."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p")).replace("scheduler", "")


def _with_schedules(solver: Solver, schedules: Mapping[str, Schedule]) -> Solver:
    if solver.own_grid is not None:
        return replace(solver, schedules=MappingProxyType({DEFAULT: solver.own_grid}))
    followed = {name: solver.spacing(entry.sigmas) for name, entry in schedules.items()}
    return replace(solver, schedules=MappingProxyType(followed))


def _require(name: str, solver: Solver, schedule: str) -> None:
    if schedule not in solver.schedules:
        raise ValueError(f"sampler {name} has no schedule {schedule!r}")


def _spellings(name: str, solver: Solver) -> Iterator[tuple[str, str]]:
    """Each folded spelling of a solver, with the schedule that it brings."""
    label = fold(solver.label)
    yield label, solver.a1111_schedule
    yield f"k{label}", DEFAULT  # as in Replicate's K_EULER
    for other in {fold(name), *map(fold, solver.aliases)} - {label}:
        yield other, DEFAULT
        yield f"k{other}", DEFAULT


def _table(entries: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    table: dict[str, Value] = {}
    for spelling, value in entries:
        if table.setdefault(spelling, value) != value:
            raise ValueError(f"the spelling {spelling!r} has two meanings: {table[spelling]} and {value}")
    return table


def _shown(name: str) -> str:
    return repr(name if len(name) <= MAX_SHOWN else name[:MAX_SHOWN] + "...")


def _nearest(name: str, known: list[str], listed: list[str]) -> str:
    """The nearest of the known names; if there is none, or if they are few, also those that are to be listed."""
    folded = {fold(each): each for each in known}
    close = difflib.get_close_matches(fold(name[:MAX_SHOWN]), folded, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(folded[each]) for each in close)}? " if close else ""
    if len(listed) > MAX_LISTED:
        return hint or f"known: {', '.join(listed[:MAX_LISTED])} and {len(listed) - MAX_LISTED} more"
    return f"{hint}known: {', '.join(listed)}"
