"""Who shares the next forward: the rules of the scheduler, on pictures that ask without computing anything."""

from collections.abc import Generator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sd_core.engine.scheduler import RECOVERY, Job, Running, Scheduler, batch_key
from sd_core.work import Decode, Encode, UNetRows, Work

NATIVE = 64
SIDES = (8, 12, 16)


def steps(side: int = 8, rows: int = 2) -> UNetRows:
    return UNetRows(torch.empty(1, 4, side, side), 1.0, torch.empty(rows, 3, 2))


def decode(side: int = 8) -> Decode:
    return Decode(torch.empty(1, 4, side, side))


def encode(side: int = 8) -> Encode:
    return Encode(torch.empty(1, 3, 8 * side, 8 * side), torch.empty(1, 4, side, side))


def never() -> Generator[Work, Tensor, Tensor]:
    raise AssertionError("the scheduler runs no picture")
    yield


@dataclass
class House:
    """A scheduler and the jobs in it, in order of arrival."""

    max_batch: int = 4
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.max_batch, NATIVE * NATIVE)

    def add(self, work: Work, pictures: int = 1) -> Job:
        job = Job(len(self.jobs))
        self.jobs.append(job)
        self.scheduler.add(Running(job, index, never(), work) for index in range(pictures))
        return job

    def next(self) -> list[tuple[int, int]]:
        """(job, picture) of each picture in the next forward."""
        return [(picture.job.order, picture.index) for picture in self.scheduler.next_batch()]


def test_with_room_for_all_everyone_advances_at_every_tick() -> None:
    house = House(max_batch=4)
    house.add(steps())
    house.add(steps(rows=1), pictures=2)
    assert sorted(house.next()) == sorted(house.next()) == [(0, 0), (1, 0), (1, 1)]
    house.add(steps())
    assert (2, 0) in house.next()


def test_room_is_counted_in_rows() -> None:
    house = House(max_batch=2)
    for _ in range(6):
        house.add(steps(rows=1))
    assert len(house.next()) == 4
    house = House(max_batch=2)
    for _ in range(3):
        house.add(steps(rows=2))
    house.add(steps(rows=1))
    assert len(house.next()) == 2


@pytest.mark.parametrize(("side", "together"), [(4, 4), (8, 4), (16, 1), (24, 1)])
def test_large_pictures_take_the_room_of_several(side: int, together: int) -> None:
    house = House(max_batch=4)
    house.add(steps(side), pictures=6)
    assert len(house.next()) == together


def test_a_job_of_many_pictures_leaves_room_for_others() -> None:
    house = House(max_batch=4)
    many = house.add(steps(), pictures=16)
    house.next()
    house.add(steps())
    house.add(steps())
    batch = house.next()
    assert {(1, 0), (2, 0)} < set(batch)
    assert len(batch) == 4
    drawn = [picture.served for picture in house.scheduler.running if picture.job is many]
    assert sorted(drawn, reverse=True)[:6] == [2, 2, 1, 1, 1, 1]


def test_shapes_that_cannot_be_stacked_take_turns() -> None:
    house = House(max_batch=16)
    for side in SIDES:
        house.add(steps(side))
        house.add(steps(side))
    leads = [house.next() for _ in range(6)]
    assert [sorted(job for job, _ in batch) for batch in leads] == [[0, 1], [2, 3], [4, 5]] * 2


def test_prompts_of_another_length_are_not_stacked() -> None:
    house = House()
    house.add(steps())
    house.add(UNetRows(torch.empty(1, 4, 8, 8), 1.0, torch.empty(2, 5, 2)))
    assert len(house.next()) == 1


def test_steps_wait_for_one_forward_of_the_vae_at_most() -> None:
    house = House()
    for work in (decode(64), decode(64), steps(), encode(64)):
        house.add(work)
    kinds = []
    for _ in range(5):
        batch = house.scheduler.next_batch()
        kinds.append(type(batch[0].asked))
        assert len(batch) == 1
    assert kinds == [Decode, UNetRows, Decode, UNetRows, Encode]


def test_pictures_of_one_job_share_an_encoding_and_strangers_have_their_own() -> None:
    house = House()
    house.add(encode(64), pictures=3)
    house.add(encode(64))
    assert [len(house.next()) for _ in range(2)] == [3, 1]


def test_small_pictures_are_decoded_together() -> None:
    house = House()
    house.add(decode(8), pictures=3)
    house.add(decode(8))
    assert len(house.next()) == 4


def test_after_a_lack_of_memory_batches_are_smaller_for_a_while() -> None:
    house = House(max_batch=4)
    house.add(steps(), pictures=4)
    house.scheduler.shrink(house.scheduler.next_batch())
    assert len(house.next()) == 2
    for _ in range(RECOVERY):
        size = len(house.next())
    assert size == 4


def test_batches_are_no_larger_than_memory_holds() -> None:
    house = House(max_batch=4)
    house.add(steps(), pictures=4)
    house.scheduler.memory_room = {UNetRows: 5 * NATIVE * NATIVE}
    assert len(house.next()) == 2
    house.scheduler.memory_room = {UNetRows: 0}
    assert len(house.next()) == 1, "one is tried whatever is said"
    house.scheduler.memory_room = {}
    assert len(house.next()) == 4


def test_nothing_runs_where_nothing_is() -> None:
    house = House()
    assert house.next() == []
    job = house.add(steps(), pictures=2)
    assert len(house.scheduler.remove(job)) == 2
    assert house.next() == []


work_of = st.one_of(
    st.builds(steps, st.sampled_from(SIDES), st.integers(1, 2)),
    st.builds(decode, st.sampled_from(SIDES)),
    st.builds(encode, st.sampled_from(SIDES)),
)


@given(
    max_batch=st.integers(1, 5),
    arrivals=st.lists(st.tuples(work_of, st.integers(1, 6), st.integers(0, 3)), min_size=1, max_size=8),
)
def test_whatever_arrives_everyone_is_served_and_forwards_hold_what_they_may(
    max_batch: int, arrivals: list[tuple[Work, int, int]]
) -> None:
    house, ticks = House(max_batch), 0
    for work, pictures, wait in arrivals:
        house.add(work, pictures)
        for _ in range(wait):
            house.next()
            ticks += 1
    scheduler = house.scheduler
    # Each job leads in turn, the VAE's at every second tick.
    for _ in range(2 * len(house.jobs)):
        batch = scheduler.next_batch()
        ticks += 1
        assert len({batch_key(picture.asked) for picture in batch}) == 1
        cost = sum(scheduler.cost(picture.asked) for picture in batch)
        assert len(batch) == 1 or cost <= max(2 * max_batch * NATIVE**2, 512 * 512)
        assert len(set(map(id, batch))) == len(batch)
    assert all(job.served > ticks - 2 * len(house.jobs) for job in house.jobs)
