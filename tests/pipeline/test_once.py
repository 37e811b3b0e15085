import threading
import time

import pytest

from sd_core.pipeline.once import Once


def test_all_callers_share_one_result_of_one_call() -> None:
    calls: list[int] = []

    def make() -> list[int]:
        time.sleep(0.05)
        calls.append(1)
        return [7]

    once, found = Once(make), list[list[int]]()
    threads = [threading.Thread(target=lambda: found.append(once())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert all(each is found[0] for each in found) and len(found) == 4


def test_a_result_may_be_none() -> None:
    calls: list[int] = []
    once = Once(lambda: calls.append(1))
    assert once() is None and once() is None
    assert calls == [1]


def test_a_failure_is_raised_and_not_kept() -> None:
    outcomes = iter([ValueError("first"), 5])

    def make() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    once = Once(make)
    with pytest.raises(ValueError, match="first"):
        once()
    assert once() == 5
