import subprocess
import sys
import time
from pathlib import Path

import pytest

from worker.phases import Phases


def test_the_time_of_a_start_is_divided_into_phases() -> None:
    clock = iter([10.0, 10.25, 12.0, 12.5])
    phases = Phases(1.5, lambda: next(clock))
    phases.end("load")
    phases.end("warm_up")
    phases.end("load")  # of a second model
    assert phases.milliseconds() == {"imports": 1500, "load": 750, "warm_up": 1750, "total": 4000}


def test_an_unknown_age_is_left_out() -> None:
    clock = iter([1.0, 2.0])
    phases = Phases(None, lambda: next(clock))
    phases.end("load")
    assert phases.milliseconds() == {"load": 1000, "total": 1000}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux has this file")
def test_a_process_knows_its_age() -> None:
    command = "import time; time.sleep(0.5); from worker.phases import process_age; print(process_age())"
    started = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout)
    assert 0.5 <= age <= time.monotonic() - started + 0.1
