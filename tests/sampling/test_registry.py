import pytest

from sd_core.errors import InvalidRequest
from sd_core.sampling.registry import (
    SOLVERS,
    a1111_label,
    joined_name,
    resolve,
    sampler_names,
    schedule_names,
)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("dpmpp_2m_karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("dpmpp_2m", ("dpmpp_2m", "default")),
        ("DPMSolverMultistep", ("dpmpp_2m", "default")),
        ("DPMSolverMultistepScheduler", ("dpmpp_2m", "default")),
        ("K_EULER", ("euler", "default")),
        ("EulerDiscreteScheduler", ("euler", "default")),
        ("Euler a", ("euler_a", "default")),
        ("K_EULER_ANCESTRAL", ("euler_a", "default")),
        ("EulerAncestralDiscreteScheduler", ("euler_a", "default")),
        ("euler_a_karras", ("euler_a", "karras")),
        ("HeunDiscrete", ("heun", "default")),
        ("DDIM", ("ddim", "default")),
        ("DDIMScheduler", ("ddim", "default")),
        ("DDPM", ("ddpm", "default")),
    ],
)
def test_spellings_of_other_tools(spelling: str, expected: tuple[str, str]) -> None:
    assert resolve(spelling, None) == expected


def test_every_joined_name_and_label_resolves_to_itself() -> None:
    for name, solver in SOLVERS.items():
        for schedule in solver.schedules:
            assert resolve(joined_name(name, schedule), None) == (name, schedule)
            assert resolve(a1111_label(name, schedule), None) == (name, schedule)
            assert resolve(name, schedule) == (name, schedule)


def test_defaults() -> None:
    assert resolve(None, None) == ("dpmpp_2m", "karras")
    assert resolve(None, "default") == ("dpmpp_2m", "default")
    assert resolve("euler", "Karras") == ("euler", "karras")
    assert resolve("Euler a", "Automatic") == ("euler_a", "default")


@pytest.mark.parametrize(
    ("sampler", "schedule", "says"),
    [
        ("eulr", None, "did you mean 'euler'"),
        ("", None, "known: ddpm"),
        ("plms", None, "known: ddpm"),
        ("euler", "karas", "did you mean 'karras'"),
        ("ddim", "karras", "ddim has no schedule 'karras'"),
        ("dpmpp_2m_karras", "default", "names the schedule karras"),
        ("x" * 10_000, None, "..."),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(sampler: str, schedule: str | None, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolve(sampler, schedule)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


def test_names_are_listed() -> None:
    assert {"euler", "euler_karras", "dpmpp_2m_karras", "ddim"} <= set(sampler_names())
    assert schedule_names() == ["default", "karras"]
