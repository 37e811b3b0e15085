"""The lock file: one owner at a time, and none that is dead."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from builder import lock as lock_module
from builder.lock import hold


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def test_the_lock_is_held_and_removed(path: Path) -> None:
    with hold(path):
        assert str(os.getpid()) in path.read_text()
    assert not path.exists()


def test_the_lock_is_removed_after_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), hold(path):
        raise ValueError("inside")
    assert not path.exists()


def test_one_owner_at_a_time(path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with hold(path, poll_s=0.001):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_dead_process_of_this_machine_holds_nothing(path: Path) -> None:
    code = "import os, sys; from builder.lock import hold; h = hold(__import__('pathlib').Path(sys.argv[1]))\n"
    code += "h.__enter__(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.exists()
    with hold(path, stale_after_s=3_600):
        pass


def test_a_foreign_lock_that_rests_is_broken_and_one_that_beats_is_not(path: Path) -> None:
    path.write_text("another-machine 1 abc 0")
    with hold(path, stale_after_s=0.05, poll_s=0.01):
        pass
    path.write_text("another-machine 1 abc 0")
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(0.02):
            count += 1
            path.write_text(f"another-machine 1 abc {count}")
        path.unlink()

    beating = threading.Thread(target=beat)
    beating.start()
    threading.Timer(0.5, stop.set).start()
    with hold(path, stale_after_s=0.3, poll_s=0.01):
        assert stop.is_set()
    beating.join()


def test_the_owner_shows_that_it_lives(path: Path) -> None:
    with hold(path, heartbeat_s=0.01):
        first = path.read_text()
        deadline = time.monotonic() + 10
        while path.read_text() in (first, "") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.read_text() != first


def test_a_lock_that_another_took_over_is_left_to_it(path: Path) -> None:
    with hold(path, heartbeat_s=0.01):
        path.write_text("another-machine 1 abc 0")
        time.sleep(0.1)
        assert path.read_text() == "another-machine 1 abc 0"
    assert path.read_text() == "another-machine 1 abc 0"


def test_processes_of_other_machines_are_never_judged(path: Path) -> None:
    machine = lock_module._machine()
    assert socket.gethostname() in machine
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert lock_module._is_dead(f"{machine} {gone.pid} x 0")
    assert not lock_module._is_dead(f"other-{machine} {gone.pid} x 0")
    assert not lock_module._is_dead(f"{machine} {os.getpid()} x 0")
    assert not lock_module._is_dead("")


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), hold(tmp_path / "nowhere" / ".lock"):
        pass
