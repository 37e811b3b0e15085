"""Threads for images' work on the host, so that the engine thread does not wait for it."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

# Called with a task's result, or with the exception that it raised, on the thread that ran it.
Done = Callable[[Any], None]


class HostPool:
    """A bounded number of threads that run tasks in the order of their arrival."""

    def __init__(self, threads: int) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Not an executor: the interpreter stops those before its exit handlers run, and these still wait for jobs.
        self._threads = [
            threading.Thread(target=self._work, name=f"host-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Callable[[], Any], done: Done) -> None:
        self._tasks.put(partial(_run, run, done))

    def start(self, run: Callable[[], Any]) -> Future[Any]:
        """Submit a task; the future of its result."""
        future: Future[Any] = Future()
        self.submit(run, partial(_resolve, future))
        return future

    def close(self) -> None:
        """Finish what was submitted, then end the threads."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


def _resolve(future: Future[Any], result: Any) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _run(run: Callable[[], Any], done: Done) -> None:
    try:
        result = run()
    except Exception as error:  # noqa: BLE001 - `done` gets it
        result = error
    done(result)
