"""The time of each phase of a start."""

import os
import time
from collections.abc import Callable
from pathlib import Path


class Phases:
    """A stopwatch for the phases of a start. `imports` is all that came before it, if the process's age is known."""

    def __init__(self, age_s: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {} if age_s is None else {"imports": age_s}
        self._last = clock()

    def end(self, name: str) -> None:
        """Count the time since the last phase's end to the phase `name`, which may have several parts."""
        now = self._clock()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def milliseconds(self) -> dict[str, float]:
        """By phase, and in total."""
        spent = {**self._seconds, "total": sum(self._seconds.values())}
        return {name: round(1000 * seconds, 1) for name, seconds in spent.items()}


def process_age() -> float | None:
    """Seconds since this process began, on Linux; None elsewhere."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    # The fields after the name, which may itself contain spaces, begin with the third; the 22nd is in ticks since boot.
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
