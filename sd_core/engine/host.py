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
    """A bounded number of threads that run tasks in the order of their arrival.

    A task that is submitted again before it is done runs once, and all who submitted it get its result.
    """

    def __init__(self, threads: int, name: str = "host") -> None:
        self._tasks: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._waiting: dict[Callable[[], Any], list[Done]] = {}
        self._lock = threading.Lock()  # over _waiting
        # Not an executor: the interpreter stops those before its exit handlers run, and these still wait for jobs.
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, run: Callable[[], Any], done: Done) -> None:
        with self._lock:
            waiting = self._waiting.setdefault(run, [])
            waiting.append(done)
            if len(waiting) == 1:
                self._tasks.put(run)

    def start(self, run: Callable[[], Any]) -> Future[Any]:
        """Submit a task, which runs even if the same one is under way; the future of its result."""
        future: Future[Any] = Future()
        self.submit(partial(run), partial(_resolve, future))
        return future

    def close(self) -> None:
        """Finish what was submitted, then end the threads."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        # A call for each task, so that a thread that waits keeps alive nothing of the last one.
        while self._run_next():
            pass

    def _run_next(self) -> bool:
        """Run the next task; false if there are no more."""
        run = self._tasks.get()
        if run is None:
            return False
        try:
            result = run()
        except Exception as error:  # noqa: BLE001 - whoever submitted it gets it
            result = error
        with self._lock:
            waiting = self._waiting.pop(run)
        for done in waiting:
            done(result)
        return True


def _resolve(future: Future[Any], result: Any) -> None:
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
