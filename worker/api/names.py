"""What names mean that tools disagree on, and what samplers and schedules are called by AUTOMATIC1111."""

from collections.abc import Mapping
from typing import Any

from sd_core.fields import Record
from sd_core.sampling.registry import SCHEDULES, SOLVERS, is_sampler, is_schedule


def a1111_labels(sampler: str, schedule: str) -> tuple[str, str]:
    """What A1111 calls a sampler and its schedule. A sampler that follows no schedule has "Automatic"."""
    solver = SOLVERS[sampler]
    return solver.label, "Automatic" if solver.own_grid is not None else SCHEDULES[schedule].label


def scheduler_meant(payload: Mapping[Any, Any], record: Record) -> dict[str, str]:
    """Which field `scheduler` means, which other tools use for a sampler or for a schedule.

    Beside a sampler it is the schedule. Alone it is the sampler, unless it names a schedule and no sampler.
    """
    value = payload.get("scheduler")
    names = {"sampler", *record["sampler"].aliases} - {"scheduler"}
    samplers = [payload.get(name) for name in names]
    if any(sampler is not None and sampler != value for sampler in samplers):
        return {"scheduler": "schedule"}
    names_schedule = isinstance(value, str) and is_schedule(value) and not is_sampler(value)
    return {"scheduler": "schedule"} if names_schedule else {}
