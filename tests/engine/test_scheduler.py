"""Who shares the next forward: the rules of the scheduler, on pictures that compute nothing."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sd_core.engine.scheduler import RECOVERY, Job, Running, Scheduler
from tests.support.kinds import Doubling, DoublingKind


def never() -> Generator[Any, Any, Any]:
    raise AssertionError("the scheduler resumes no picture")
    yield


@dataclass
class House:
    """A scheduler and the jobs in it, in order of arrival. `steps` has room for four works, `vae` interrupts."""

    scheduler: Scheduler = field(default_factory=Scheduler)
    steps: DoublingKind = field(default_factory=lambda: DoublingKind(room=4))
    vae: DoublingKind = field(default_factory=lambda: DoublingKind(room=4, interrupts=True))
    jobs: list[Job] = field(default_factory=list)

    def add(self, work: Doubling, pictures: int = 1, kind: DoublingKind | None = None) -> list[Running]:
        job = Job(len(self.jobs))
        self.jobs.append(job)
        added = [Running(job, index, never()) for index in range(pictures)]
        for picture in added:
            self.scheduler.add(picture)
            self.scheduler.ask(picture, work, kind or self.steps)
        return added

    def next(self) -> list[tuple[int, int]]:
        """(job, picture) of each picture in the next forward."""
        return [(picture.job.order, picture.index) for picture in self.scheduler.next_batch()]


def test_all_advance_at_every_tick_if_there_is_room() -> None:
    house = House()
    house.add(Doubling(1, cost=2))
    house.add(Doubling(1), pictures=2)
    assert sorted(house.next()) == sorted(house.next()) == [(0, 0), (1, 0), (1, 1)]
    house.add(Doubling(1))
    assert (2, 0) in house.next()


def test_room_is_counted_in_costs() -> None:
    house = House()
    for _ in range(6):
        house.add(Doubling(1, cost=1))
    assert len(house.next()) == 4
    house = House()
    for cost in (2, 2, 2, 1):
        house.add(Doubling(1, cost=cost))
    assert len(house.next()) == 2


def test_a_work_that_exceeds_the_room_runs_alone() -> None:
    house = House()
    house.add(Doubling(1, cost=9), pictures=2)
    assert len(house.next()) == 1


def test_a_job_of_many_pictures_leaves_room_for_others() -> None:
    house = House()
    many = house.add(Doubling(1), pictures=16)
    house.next()
    house.add(Doubling(1))
    house.add(Doubling(1))
    batch = house.next()
    assert {(1, 0), (2, 0)} < set(batch)
    assert len(batch) == 4
    assert sorted((picture.served for picture in many), reverse=True)[:6] == [2, 2, 1, 1, 1, 1]


def test_works_of_different_keys_take_turns() -> None:
    house = House()
    for shape in "abc":
        house.add(Doubling(1, shape))
        house.add(Doubling(1, shape))
    batches = [house.next() for _ in range(6)]
    assert [sorted(job for job, _ in batch) for batch in batches] == [[0, 1], [2, 3], [4, 5]] * 2


def test_steps_wait_for_at_most_one_forward_of_an_interrupting_kind() -> None:
    house = House()
    for work, kind in (
        (Doubling(1, cost=4), house.vae),
        (Doubling(2, cost=4), house.vae),
        (Doubling(3), house.steps),
        (Doubling(4, cost=4), house.vae),
    ):
        house.add(work, kind=kind)
    kinds = [house.scheduler.next_batch()[0].kind for _ in range(5)]
    assert kinds == [house.vae, house.steps, house.vae, house.steps, house.vae]


def test_equal_works_take_room_once() -> None:
    house = House()
    house.add(Doubling(1, cost=4, same="image"), pictures=3)
    house.add(Doubling(1, cost=4))
    assert [len(house.next()) for _ in range(2)] == [3, 1]


def test_a_picture_that_waits_for_something_else_is_no_candidate() -> None:
    house = House()
    (waiting,) = house.add(Doubling(1))
    house.add(Doubling(1))
    house.scheduler.suspend(waiting)
    assert house.next() == [(1, 0)] and house.scheduler.has_work
    house.scheduler.remove(house.jobs[1])
    assert house.next() == [] and not house.scheduler.has_work and not house.scheduler.is_empty
    house.scheduler.ask(waiting, Doubling(2), house.steps)
    assert house.next() == [(0, 0)]


def test_after_a_lack_of_memory_batches_are_smaller_for_a_while() -> None:
    house = House()
    house.add(Doubling(1), pictures=4)
    house.scheduler.shrink(house.scheduler.next_batch())
    assert len(house.next()) == 2
    for _ in range(RECOVERY):
        size = len(house.next())
    assert size == 4


def test_batches_fit_the_memory_that_is_usable() -> None:
    house = House()
    house.add(Doubling(1, bytes=100), pictures=4)
    house.scheduler.usable_bytes = 250
    assert len(house.next()) == 2
    house.scheduler.usable_bytes = 0
    assert len(house.next()) == 1, "one is tried in any case"
    house.scheduler.usable_bytes = None
    assert len(house.next()) == 4


def test_an_empty_scheduler_has_no_batch() -> None:
    house = House()
    assert house.next() == [] and house.scheduler.is_empty
    first, second = house.add(Doubling(1), pictures=2)
    house.scheduler.finish(first)
    assert not house.scheduler.holds(first) and house.scheduler.holds(second)
    assert house.scheduler.remove(house.jobs[0]) == [second]
    assert house.next() == [] and house.scheduler.jobs == set()


@given(
    arrivals=st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from([1, 2, 6]), st.booleans(), st.integers(1, 6), st.integers(0, 3)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_job_is_served_and_no_forward_exceeds_its_room(
    arrivals: list[tuple[str, int, bool, int, int]],
) -> None:
    house, ticks = House(), 0
    for shape, cost, interrupts, pictures, wait in arrivals:
        house.add(Doubling(1, shape, cost), pictures, house.vae if interrupts else house.steps)
        for _ in range(wait):
            house.next()
            ticks += 1
    # Each job leads in turn, those that interrupt at every other tick.
    for _ in range(2 * len(house.jobs)):
        batch = house.scheduler.next_batch()
        ticks += 1
        assert len({(picture.kind, picture.work.shape) for picture in batch}) == 1
        assert len(batch) == 1 or sum(picture.work.cost for picture in batch) <= 4
        assert len(set(batch)) == len(batch)
    assert all(job.served > ticks - 2 * len(house.jobs) for job in house.jobs)
