"""The lock file: one owner at a time, and dead owners are replaced."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

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


def test_the_lock_of_a_dead_process_is_replaced(path: Path) -> None:
    code = "import os, sys; from builder.lock import hold; h = hold(__import__('pathlib').Path(sys.argv[1]))\n"
    code += "h.__enter__(); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert path.exists()
    with hold(path, stale_after_s=3_600):
        pass


def test_a_stale_lock_of_another_machine_is_replaced_and_a_live_one_is_not(path: Path) -> None:
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


def test_the_owner_rewrites_its_lock(path: Path) -> None:
    with hold(path, heartbeat_s=0.01):
        first = path.read_text()
        deadline = time.monotonic() + 10
        while path.read_text() in (first, "") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.read_text() != first


def test_a_lock_taken_over_by_another_owner_is_left_alone(path: Path) -> None:
    with hold(path, heartbeat_s=0.01):
        path.write_text("another-machine 1 abc 0")
        time.sleep(0.1)
        assert path.read_text() == "another-machine 1 abc 0"
    assert path.read_text() == "another-machine 1 abc 0"


def waits(path: Path, content: str, at_least_s: float = 0.3) -> bool:
    """Whether a lock file of this content is respected until it is stale."""
    path.write_text(content)
    start = time.monotonic()
    with hold(path, stale_after_s=at_least_s, poll_s=0.01):
        return time.monotonic() - start >= at_least_s


def test_only_processes_of_this_machine_are_known_to_be_dead(path: Path) -> None:
    with hold(path):
        machine = path.read_text().split()[0]
    assert socket.gethostname() in machine
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not waits(path, f"{machine} {gone.pid} x 0", at_least_s=60)
    assert waits(path, f"other-{machine} {gone.pid} x 0")
    assert waits(path, f"{machine} {os.getpid()} x 0")
    assert waits(path, "")


def test_a_lock_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), hold(tmp_path / "nowhere" / ".lock"):
        pass
