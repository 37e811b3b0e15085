"""Worker processes, for tests and measurements."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
WORKER_VARIABLES = ("SD_", "RUNPOD_", "LOG_LEVEL", "FLASK_DEBUG", "PORT")
TIMEOUT_S = 300.0  # for anything that is waited for; long, because the machine may be busy


def environ_without_worker() -> dict[str, str]:
    """This process's environment without any of the variables that a worker reads."""
    return {name: value for name, value in os.environ.items() if not name.startswith(WORKER_VARIABLES)}


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class WorkerProcess:
    """`python ARGUMENTS` in the repository, with exactly this environment; its output goes to the file `printed`.

    Methods that wait raise `RuntimeError`, with the output so far, if the process ends or is stuck.
    """

    def __init__(self, arguments: Sequence[str], environ: dict[str, str], printed: Path) -> None:
        self._printed = printed
        with printed.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def printed(self) -> str:
        """The output so far, of standard output and standard error."""
        return self._printed.read_text(encoding="utf-8", errors="replace")

    @property
    def resident_bytes(self) -> int:
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident

    def lines(self) -> list[dict[str, Any]]:
        """The structured log lines so far."""
        return [json.loads(line) for line in self.printed.splitlines() if line.startswith('{"time"')]

    def wait_for(self, condition: Callable[[], bool], seconds: float = TIMEOUT_S, poll_s: float = 0.05) -> None:
        """Wait until the condition holds, checking it every `poll_s` seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise RuntimeError(f"the process ended with {self.process.returncode}; its output:\n{self.printed}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing happened within {seconds:g} s; output so far:\n{self.printed}")
            time.sleep(poll_s)

    def exit_code(self) -> int:
        """Wait until the process ends by itself, and return its code."""
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"still running after {TIMEOUT_S:g} s; output so far:\n{self.printed}") from None

    def end(self) -> int:
        """Ask the process to end, as the platform does, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.exit_code()

    def kill(self) -> None:
        kill_family(self.process)


def kill_family(process: subprocess.Popen[Any]) -> None:
    """Kill a process and its children. A worker's child, the SDK's heartbeat, would outlive it."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for member in (process, *family):
        member.kill()
    process.wait()
