"""Every solver and schedule by name: one line here adds one, and the tests walk these tables."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from sd_core.errors import InvalidRequest
from sd_core.sampling.ddpm import ddim, ddpm
from sd_core.sampling.dpm import dpmpp_2m
from sd_core.sampling.euler import euler, euler_a, heun
from sd_core.sampling.noise import NoiseSource
from sd_core.sampling.schedule import Sigmas, ddim_sigmas, ddpm_sigmas, karras_sigmas, uniform_sigmas
from sd_core.work import Sampling

SigmasOf = Callable[[int], Sigmas]


@dataclass(frozen=True)
class Solver:
    """A sampler without its schedule: its coroutine, the space it works in, and the schedules that it can follow."""

    label: str  # as AUTOMATIC1111 shows it
    run: Callable[[Tensor, Sigmas, NoiseSource], Sampling]
    schedules: dict[str, SigmasOf]
    variance_preserving: bool = False
    aliases: tuple[str, ...] = ()  # other tools' names, in lower-case letters and digits alone

    def noised(self, latents: Tensor | None, noise: Tensor, sigma: float) -> Tensor:
        """The latents to begin with: pure noise, or the given latents with noise of level sigma."""
        if latents is None:
            return noise if self.variance_preserving else noise * sigma
        x = latents + noise * sigma
        return x / sqrt(1 + sigma**2) if self.variance_preserving else x


FREE_SCHEDULES: dict[str, SigmasOf] = {"default": uniform_sigmas, "karras": karras_sigmas}

SOLVERS: dict[str, Solver] = {
    "ddpm": Solver("DDPM", ddpm, {"default": ddpm_sigmas}, variance_preserving=True),
    "ddim": Solver("DDIM", ddim, {"default": ddim_sigmas}, variance_preserving=True),
    "euler": Solver("Euler", euler, FREE_SCHEDULES, aliases=("eulerdiscrete",)),
    "euler_a": Solver("Euler a", euler_a, FREE_SCHEDULES, aliases=("eulerancestral", "eulerancestraldiscrete")),
    "heun": Solver("Heun", heun, FREE_SCHEDULES, aliases=("heundiscrete",)),
    "dpmpp_2m": Solver("DPM++ 2M", dpmpp_2m, FREE_SCHEDULES, aliases=("dpmsolvermultistep",)),
}

SCHEDULE_ALIASES = {"automatic": "default"}
"""AUTOMATIC1111's names for schedules that have another here."""

DEFAULT_SOLVER, DEFAULT_SCHEDULE = "dpmpp_2m", "karras"


def schedule_names() -> list[str]:
    return list(dict.fromkeys(name for solver in SOLVERS.values() for name in solver.schedules))


def sampler_names() -> list[str]:
    """Every accepted joined name, `euler` and `euler_karras` alike."""
    return [joined_name(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules]


def joined_name(solver: str, schedule: str) -> str:
    return solver if schedule == "default" else f"{solver}_{schedule}"


def a1111_label(solver: str, schedule: str) -> str:
    label = SOLVERS[solver].label
    return label if schedule == "default" else f"{label} {schedule.capitalize()}"


def resolve(sampler: str | None, schedule: str | None) -> tuple[str, str]:
    """Any spelling of a sampler and, apart or in its name, of a schedule -> (solver, schedule).

    Without a sampler the default one; without a schedule the one in the sampler's name, else the sampler's own.
    Raises `InvalidRequest` that names the nearest known name.
    """
    wanted = None if schedule is None else _schedule(schedule)
    if sampler is None:
        return DEFAULT_SOLVER, wanted or DEFAULT_SCHEDULE
    solver, in_name = _solver(sampler)
    if wanted and in_name and wanted != in_name:
        raise InvalidRequest(f"sampler {sampler!r} names the schedule {in_name}, but schedule is {schedule!r}")
    resolved = wanted or in_name or "default"
    if resolved not in SOLVERS[solver].schedules:
        known = ", ".join(SOLVERS[solver].schedules)
        raise InvalidRequest(f"sampler {solver} has no schedule {resolved!r}; it has {known}")
    return solver, resolved


def is_sampler(name: str) -> bool:
    """Whether `name` is any spelling of a sampler."""
    return _known(_solver, name)


def is_schedule(name: str) -> bool:
    """Whether `name` is any spelling of a schedule."""
    return _known(_schedule, name)


def _known(lookup: Callable[[str], object], name: str) -> bool:
    if len(name) > 100:  # the nearest name of a long one takes a while to find
        return False
    try:
        lookup(name)
    except InvalidRequest:
        return False
    return True


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))


def _schedule(name: str) -> str:
    letters = SCHEDULE_ALIASES.get(_letters(name), _letters(name))
    if letters in schedule_names():
        return letters
    raise InvalidRequest(f"schedule is {_shown(name)}; {_nearest(name, schedule_names())}")


def _solver(name: str) -> tuple[str, str | None]:
    letters = _letters(name).removesuffix("scheduler")
    schedule = next((s for s in schedule_names() if letters.endswith(s)), None)
    letters = letters.removesuffix(schedule or "")
    for known, solver in SOLVERS.items():
        spellings = (_letters(known), *solver.aliases)
        if letters in spellings or letters.removeprefix("k") in spellings:
            return known, schedule
    raise InvalidRequest(f"sampler is {_shown(name)}; {_nearest(name, sampler_names())}")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "...")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"
