"""The threads that run images' work on the host."""

import weakref

import pytest

from sd_core.engine.host import HostPool
from tests.support.http import wait_until


class Result:
    """What a task returns."""


def test_a_thread_that_waits_keeps_nothing_of_its_last_task() -> None:
    pool = HostPool(1, "test")
    results: list[weakref.ref[Result]] = []

    def task() -> Result:
        result = Result()
        results.append(weakref.ref(result))
        return result

    kept = weakref.ref(task)
    pool.start(task).result(10)
    del task
    wait_until(lambda: results[0]() is None and kept() is None)
    pool.close()


def test_an_error_is_the_answer_and_the_thread_goes_on() -> None:
    pool = HostPool(1, "test")
    with pytest.raises(ZeroDivisionError):
        pool.start(lambda: 1 // 0).result(10)
    assert pool.start(lambda: 7).result(10) == 7
    pool.close()
