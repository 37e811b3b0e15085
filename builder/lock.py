"""A lock between processes that share a directory, possibly from several machines.

Network file systems may lack `flock` or limit it to one machine, so the lock is a file that only one process can
create. Its owner rewrites it every few seconds; a lock file that stays unchanged for too long belongs to a process
that died. Two owners are still possible (one was suspended for minutes), so the lock may only be used to save work,
not for correctness.
"""

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0
POLL_S = 0.5


@contextlib.contextmanager
def hold(
    path: Path,
    *,
    heartbeat_s: float = HEARTBEAT_S,
    stale_after_s: float = STALE_AFTER_S,
    poll_s: float = POLL_S,
) -> Iterator[None]:
    """Holds the lock file, after waiting until no other owner is alive. OSError if it cannot be created."""
    owner = f"{_machine()} {os.getpid()} {uuid.uuid4().hex}"
    _acquire(path, owner, stale_after_s, poll_s)
    released = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, owner, released, heartbeat_s), daemon=True)
    beat.start()
    try:
        yield
    finally:
        released.set()
        beat.join()
        if _read(path).startswith(owner):
            path.unlink(missing_ok=True)


def _acquire(path: Path, owner: str, stale_after_s: float, poll_s: float) -> None:
    seen, since = "", time.monotonic()
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(f"{owner} 0")
            return
        except FileExistsError:
            content = _read(path)
        if content != seen:
            seen, since = content, time.monotonic()
        # Only changes of the file count: the owner's clock may differ from ours.
        if _is_dead(content) or time.monotonic() - since > stale_after_s:
            if _read(path) == content:
                path.unlink(missing_ok=True)
            continue
        time.sleep(poll_s)


def _beat(path: Path, owner: str, released: threading.Event, heartbeat_s: float) -> None:
    count = 0
    while not released.wait(heartbeat_s):
        count += 1
        # A lost lock is not taken back; a failed write is repeated at the next beat.
        with contextlib.suppress(OSError):
            if _read(path).startswith(owner):
                path.write_text(f"{owner} {count}", encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # removed meanwhile, or not readable yet: the caller tries again
        return ""


def _is_dead(content: str) -> bool:
    """Whether the owner is a process of this machine that has ended."""
    match content.split():
        case [machine, pid, *_] if machine == _machine() and pid.isdecimal():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                return True
            except (PermissionError, OverflowError):
                return False
    return False


def _machine() -> str:
    """Identifies this machine and its process ids: containers of one host name cannot see each other's processes."""
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        namespace = boot = "-"
    return f"{socket.gethostname()}/{boot}/{namespace}".replace(" ", "_")
