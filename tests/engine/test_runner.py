"""What happens if a forward fails: halves, parts, and errors that affect only their own work."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from sd_core.catalogue import Catalogue, Kind
from sd_core.engine import memory
from sd_core.engine.memory import Memory, is_out_of_memory
from sd_core.engine.runner import Runner
from sd_core.volume import Library
from tests.support.kinds import Doubling, DoublingKind

CPU = torch.device("cpu")


def runner_of(kind: DoublingKind, device: torch.device = CPU) -> Runner:
    return Runner(Memory(device), [kind])


def failing(condition: Callable[[Sequence[Doubling]], bool], error: Exception) -> Callable[[Sequence[Doubling]], None]:
    def check(works: Sequence[Doubling]) -> None:
        if condition(works):
            raise error

    return check


def test_works_share_one_forward() -> None:
    kind = DoublingKind()
    assert runner_of(kind).run(kind, [Doubling(1), Doubling(2), Doubling(3)]) == ([2, 4, 6], True)
    assert kind.forwards == [[1, 2, 3]]


def test_equal_works_are_computed_once_and_each_is_answered() -> None:
    kind = DoublingKind()
    works = [Doubling(1, same="x"), Doubling(5), Doubling(1, same="x"), Doubling(5)]
    assert runner_of(kind).run(kind, works) == ([2, 10, 2, 10], True)
    assert kind.forwards == [[1, 5, 5]]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "python", "cpu"],
)
def test_halves_run_if_not_all_fit_into_memory(error: Exception) -> None:
    kind = DoublingKind(check=failing(lambda works: len(works) > 1, error))
    answers, fits = runner_of(kind).run(kind, [Doubling(number) for number in range(4)])
    assert answers == [0, 2, 4, 6] and not fits
    assert kind.forwards == [[0, 1, 2, 3], [0, 1], [0], [1], [2, 3], [2], [3]]
    assert kind.released == 3, "caches are freed before each retry"


def test_caches_are_freed_before_a_retry(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    library = Library(Catalogue({Kind.LORA: (tmp_path,)}))
    kept = library.get(library.find(Kind.LORA, "a", "x"), lambda _: torch.zeros(9))
    kind = DoublingKind(check=failing(lambda works: len(works) > 1 or library.nbytes > 0, MemoryError()))
    runner = Runner(Memory(CPU), [kind], [library])
    assert runner.run(kind, [Doubling(1), Doubling(2)]) == ([2, 4], False)
    assert library.get(library.find(Kind.LORA, "a", "x"), lambda _: torch.ones(9)).sum() > kept.sum()


def test_a_work_that_does_not_fit_runs_in_parts() -> None:
    kind = DoublingKind(check=failing(lambda _works: True, MemoryError()))
    assert runner_of(kind).run(kind, [Doubling(4, parts=2)]) == ([8], False)
    assert kind.in_parts == [4]
    (answer,), _ = runner_of(kind).run(kind, [Doubling(4)])
    assert isinstance(answer, MemoryError), "a work without parts fails"


def test_a_forward_larger_than_the_free_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2 * memory.MIN_CHECKED
    monkeypatch.setattr(memory, "free_bytes", lambda _device: 2 * size)
    kind = DoublingKind()
    answers, fits = runner_of(kind).run(kind, [Doubling(number, bytes=size) for number in range(4)])
    assert answers == [0, 2, 4, 6] and not fits and kind.forwards == [[0, 1], [2, 3]]
    assert runner_of(kind).run(kind, [Doubling(7, bytes=4 * size, parts=2)])[0] == [14]
    (answer,), _ = runner_of(kind).run(kind, [Doubling(7, bytes=6 * size, parts=2)])
    assert isinstance(answer, MemoryError), "parts that do not fit are not tried either"


def test_a_lost_gpu_is_distinguished_from_a_failed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    kind = DoublingKind(check=failing(lambda _works: True, ZeroDivisionError()))
    assert [type(answer) for answer in runner_of(kind).run(kind, [Doubling(1)])[0]] == [ZeroDivisionError]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runner_of(kind, torch.device("cuda")).run(kind, [Doubling(1)])


def test_only_what_cannot_run_alone_fails() -> None:
    kind = DoublingKind(check=failing(lambda works: any(work.number == 3 for work in works), ZeroDivisionError("3")))
    answers, fits = runner_of(kind).run(kind, [Doubling(number) for number in range(5)])
    assert fits
    assert [type(answer) for answer in answers] == [int, int, int, ZeroDivisionError, int]
    assert kind.released == 0


def test_without_memory_each_work_fails_with_its_own_error() -> None:
    kind = DoublingKind(check=failing(lambda _works: True, MemoryError("none left")))
    answers, fits = runner_of(kind).run(kind, [Doubling(1), Doubling(2)])
    assert not fits
    assert all(isinstance(answer, MemoryError) and is_out_of_memory(answer) for answer in answers)


def test_a_warm_up_that_does_not_fit_frees_memory_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = DoublingKind()
    runner_of(kind).warm_up()
    assert kind.warmed_up == 1

    def full(self: DoublingKind) -> None:
        raise MemoryError

    monkeypatch.setattr(DoublingKind, "warm_up", full)
    runner_of(kind).warm_up()
    assert kind.released == 1
