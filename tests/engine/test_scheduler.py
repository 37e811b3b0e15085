"""Which images share the next forward: the rules of the scheduler, on images that compute nothing."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sd_core.engine.scheduler import RECOVERY, Job, Running, Scheduler
from tests.support.kinds import Doubling, DoublingKind


def never() -> Generator[Any, Any, Any]:
    raise AssertionError("the scheduler must not resume an image")
    yield


@dataclass
class Setup:
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
        """(job, image) of each image in the next forward."""
        return [(picture.job.order, picture.index) for picture in self.scheduler.next_batch()]


def test_all_advance_at_every_tick_if_there_is_room() -> None:
    setup = Setup()
    setup.add(Doubling(1, cost=2))
    setup.add(Doubling(1), pictures=2)
    assert sorted(setup.next()) == sorted(setup.next()) == [(0, 0), (1, 0), (1, 1)]
    setup.add(Doubling(1))
    assert (2, 0) in setup.next()


def test_room_is_counted_in_costs() -> None:
    setup = Setup()
    for _ in range(6):
        setup.add(Doubling(1, cost=1))
    assert len(setup.next()) == 4
    setup = Setup()
    for cost in (2, 2, 2, 1):
        setup.add(Doubling(1, cost=cost))
    assert len(setup.next()) == 2


def test_a_work_that_exceeds_the_room_runs_alone() -> None:
    setup = Setup()
    setup.add(Doubling(1, cost=9), pictures=2)
    assert len(setup.next()) == 1


def test_a_job_of_many_images_leaves_room_for_others() -> None:
    setup = Setup()
    many = setup.add(Doubling(1), pictures=16)
    setup.next()
    setup.add(Doubling(1))
    setup.add(Doubling(1))
    batch = setup.next()
    assert {(1, 0), (2, 0)} < set(batch)
    assert len(batch) == 4
    assert sorted((picture.served for picture in many), reverse=True)[:6] == [2, 2, 1, 1, 1, 1]


def test_works_of_different_keys_take_turns() -> None:
    setup = Setup()
    for shape in "abc":
        setup.add(Doubling(1, shape))
        setup.add(Doubling(1, shape))
    batches = [setup.next() for _ in range(6)]
    assert [sorted(job for job, _ in batch) for batch in batches] == [[0, 1], [2, 3], [4, 5]] * 2


def test_steps_wait_for_at_most_one_forward_of_an_interrupting_kind() -> None:
    setup = Setup()
    for work, kind in (
        (Doubling(1, cost=4), setup.vae),
        (Doubling(2, cost=4), setup.vae),
        (Doubling(3), setup.steps),
        (Doubling(4, cost=4), setup.vae),
    ):
        setup.add(work, kind=kind)
    kinds = [setup.scheduler.next_batch()[0].kind for _ in range(5)]
    assert kinds == [setup.vae, setup.steps, setup.vae, setup.steps, setup.vae]


def test_equal_works_count_once() -> None:
    setup = Setup()
    setup.add(Doubling(1, cost=4, same="image"), pictures=3)
    setup.add(Doubling(1, cost=4))
    assert [len(setup.next()) for _ in range(2)] == [3, 1]


def test_an_image_without_work_is_not_chosen() -> None:
    setup = Setup()
    (waiting,) = setup.add(Doubling(1))
    setup.add(Doubling(1))
    setup.scheduler.suspend(waiting)
    assert setup.next() == [(1, 0)] and setup.scheduler.has_work
    setup.scheduler.remove(setup.jobs[1])
    assert setup.next() == [] and not setup.scheduler.has_work and not setup.scheduler.is_empty
    setup.scheduler.ask(waiting, Doubling(2), setup.steps)
    assert setup.next() == [(0, 0)]


def test_after_a_lack_of_memory_batches_are_smaller_for_a_while() -> None:
    setup = Setup()
    setup.add(Doubling(1), pictures=4)
    setup.scheduler.shrink(setup.scheduler.next_batch())
    assert len(setup.next()) == 2
    for _ in range(RECOVERY):
        size = len(setup.next())
    assert size == 4


def test_batches_fit_into_the_usable_memory() -> None:
    setup = Setup()
    setup.add(Doubling(1, bytes=100), pictures=4)
    setup.scheduler.usable_bytes = 250
    assert len(setup.next()) == 2
    setup.scheduler.usable_bytes = 0
    assert len(setup.next()) == 1, "one is tried in any case"
    setup.scheduler.usable_bytes = None
    assert len(setup.next()) == 4


def test_an_empty_scheduler_has_no_batch() -> None:
    setup = Setup()
    assert setup.next() == [] and setup.scheduler.is_empty
    first, second = setup.add(Doubling(1), pictures=2)
    setup.scheduler.finish(first)
    assert not setup.scheduler.holds(first) and setup.scheduler.holds(second)
    assert setup.scheduler.remove(setup.jobs[0]) == [second]
    assert setup.next() == [] and setup.scheduler.jobs == set()


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
    setup, ticks = Setup(), 0
    for shape, cost, interrupts, pictures, wait in arrivals:
        setup.add(Doubling(1, shape, cost), pictures, setup.vae if interrupts else setup.steps)
        for _ in range(wait):
            setup.next()
            ticks += 1
    # Each job leads in turn, those that interrupt at every other tick.
    for _ in range(2 * len(setup.jobs)):
        batch = setup.scheduler.next_batch()
        ticks += 1
        assert len({(picture.kind, picture.work.shape) for picture in batch}) == 1
        assert len(batch) == 1 or sum(picture.work.cost for picture in batch) <= 4
        assert len(set(batch)) == len(batch)
    assert all(job.served > ticks - 2 * len(setup.jobs) for job in setup.jobs)
