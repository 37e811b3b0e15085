from dataclasses import replace

import pytest

from sd_core.errors import InvalidRequest
from sd_core.sampling.names import Registry
from sd_core.sampling.registry import (
    REGISTRY,
    SCHEDULES,
    SOLVERS,
    a1111_label,
    is_schedule,
    joined_name,
    resolve,
    sampler_names,
    schedule_names,
)
from sd_core.sampling.solver import Schedule, Solver


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("dpmpp_2m", ("dpmpp_2m", "default")),  # ComfyUI's name too, where the schedule is a field of its own
        ("dpmpp_2m_karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", ("dpmpp_2m", "karras")),
        ("dpm++ 2m", ("dpmpp_2m", "karras")),
        ("DPMPP_2M", ("dpmpp_2m", "karras")),
        ("DPM++ 2M Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M Uniform", ("dpmpp_2m", "default")),
        ("k_dpmpp_2m", ("dpmpp_2m", "default")),
        ("DPMSolverMultistep", ("dpmpp_2m", "default")),
        ("DPMSolverMultistepScheduler", ("dpmpp_2m", "default")),
        ("DPMSolverMultistep Karras", ("dpmpp_2m", "karras")),
        ("DPM-M", ("dpmpp_2m", "default")),
        ("K_EULER", ("euler", "default")),
        ("EULER-D", ("euler", "default")),
        ("EulerDiscrete", ("euler", "default")),
        ("EulerDiscreteScheduler", ("euler", "default")),
        ("EulerScheduler", ("euler", "default")),
        ("Euler Normal", ("euler", "default")),
        ("Euler a", ("euler_a", "default")),
        ("EULER-A", ("euler_a", "default")),
        ("euler_ancestral", ("euler_a", "default")),
        ("euler_ancestral_karras", ("euler_a", "karras")),
        ("K_EULER_ANCESTRAL", ("euler_a", "default")),
        ("EulerAncestralDiscrete", ("euler_a", "default")),
        ("EulerAncestralDiscreteScheduler", ("euler_a", "default")),
        ("euler_a_karras", ("euler_a", "karras")),
        ("Heun", ("heun", "default")),
        ("HeunDiscreteScheduler", ("heun", "default")),
        ("DDIM", ("ddim", "default")),
        ("DDIMScheduler", ("ddim", "default")),
        ("DDPM", ("ddpm", "default")),
    ],
)
def test_spellings_of_other_tools(spelling: str, expected: tuple[str, str]) -> None:
    assert resolve(spelling, None) == expected


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        (None, None, ("dpmpp_2m", "karras")),
        (None, "default", ("dpmpp_2m", "default")),
        (None, "Automatic", ("dpmpp_2m", "karras")),
        ("euler", "Karras", ("euler", "karras")),
        ("euler", "Automatic", ("euler", "default")),
        ("Euler a", "Automatic", ("euler_a", "default")),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m", "karras")),
        ("dpmpp_2m", "Automatic", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", "Uniform", ("dpmpp_2m", "default")),
        ("dpmpp_2m", "normal", ("dpmpp_2m", "default")),
        ("Euler Karras", "automatic", ("euler", "karras")),
        ("Euler Automatic", "karras", ("euler", "karras")),
        ("dpmpp_2m_karras", "Karras", ("dpmpp_2m", "karras")),
        ("DDIM", "Automatic", ("ddim", "default")),
        ("DDIM", "Uniform", ("ddim", "default")),
    ],
)
def test_a_schedule_beside_the_sampler(sampler: str | None, schedule: str, expected: tuple[str, str]) -> None:
    assert resolve(sampler, schedule) == expected


def test_every_joined_name_and_label_resolves_to_itself() -> None:
    for name, solver in SOLVERS.items():
        for schedule in solver.schedules:
            assert resolve(joined_name(name, schedule), None) == (name, schedule)
            assert resolve(a1111_label(name, schedule), None) == (name, schedule)
            assert resolve(name, schedule) == (name, schedule)
            assert resolve(joined_name(name, schedule), "Automatic")[0] == name


def test_every_alias_resolves_with_and_without_its_usual_ornaments() -> None:
    for name, solver in SOLVERS.items():
        for alias in solver.aliases:
            for spelling in (alias, f"{alias}Scheduler", f"K_{alias}", alias.upper(), alias.replace("_", " ")):
                assert resolve(spelling, None) == (name, "default")


def test_labels_say_the_schedule_unless_a1111_means_it_anyway() -> None:
    assert a1111_label("euler", "default") == "Euler"
    assert a1111_label("euler", "karras") == "Euler Karras"
    assert a1111_label("dpmpp_2m", "karras") == "DPM++ 2M Karras"
    assert a1111_label("dpmpp_2m", "default") == "DPM++ 2M Uniform"


@pytest.mark.parametrize("spelling", ["default", "Uniform", "normal", "Karras", "KARRAS", "Automatic"])
def test_spellings_of_schedules(spelling: str) -> None:
    assert is_schedule(spelling)


@pytest.mark.parametrize("name", ["Nonesuch", "euler", "DDIM", "Euler Karras", "", "scheduler", "k"])
def test_what_is_not_a_schedule(name: str) -> None:
    assert not is_schedule(name)


@pytest.mark.parametrize(
    ("sampler", "schedule", "says"),
    [
        ("eulr", None, "sampler is 'eulr'; did you mean 'euler'"),
        ("DPM++ 2M Krras", None, "did you mean 'dpmpp_2m_karras'"),
        ("", None, "sampler is ''; known: ddpm"),
        ("Scheduler", None, "sampler is 'Scheduler'"),
        ("plms", None, "known: ddpm"),
        ("Karras", None, "sampler is 'Karras'"),
        ("euler", "karas", "schedule is 'karas'; did you mean 'karras'"),
        ("DPM++ 2M", "Nonesuch", "schedule is 'Nonesuch'; known: default, karras"),
        (None, "", "schedule is ''"),
        ("ddim", "karras", "ddim has no schedule 'karras'; it has default"),
        ("DDIM Karras", None, "ddim has no schedule 'karras'; it has default"),
        ("dpmpp_2m_karras", "default", "'dpmpp_2m_karras' names the schedule karras, but schedule is 'default'"),
        ("Euler Uniform", "Karras", "names the schedule default, but schedule is 'Karras'"),
        ("x" * 10_000, None, "..."),
        ("euler", "x" * 10_000, "..."),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(sampler: str, schedule: str | None, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        resolve(sampler, schedule)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_long_list_of_names_is_not_repeated() -> None:
    solvers = {f"number_{n}": replace(SOLVERS["ddim"], label=f"Number {n}") for n in range(30)}
    many = Registry(solvers, SCHEDULES, default=("number_0", "default"))
    with pytest.raises(InvalidRequest) as refused:
        many.resolve("plms", None)
    assert str(refused.value).endswith("and 20 more")
    with pytest.raises(InvalidRequest) as refused:
        many.resolve("numbr_7", None)
    assert "did you mean 'number_7'" in str(refused.value) and "known" not in str(refused.value)


def test_names_are_listed() -> None:
    assert {"euler", "euler_karras", "dpmpp_2m_karras", "ddim"} <= set(sampler_names())
    assert "ddim_karras" not in sampler_names()
    assert schedule_names() == ["default", "karras"]


@pytest.mark.parametrize(
    ("solvers", "schedules"),
    [
        ({"other": replace(SOLVERS["heun"], label="EULER")}, {}),
        ({"other": replace(SOLVERS["heun"], label="Other", aliases=("K-Euler",))}, {}),
        ({"other": replace(SOLVERS["heun"], label="Other", aliases=("Euler Karras",))}, {}),
        ({"Euler": replace(SOLVERS["heun"], label="Other", aliases=())}, {}),
        ({"euler_karras": replace(SOLVERS["ddim"], label="Other")}, {}),
        ({}, {"other": replace(SCHEDULES["karras"], label="Normal")}),
        ({}, {"other": replace(SCHEDULES["karras"], label="Automatic")}),
        # "Euler" with the schedule "a Karras" would be "Euler a" with "Karras".
        ({}, {"a_karras": replace(SCHEDULES["karras"], label="A Karras")}),
    ],
)
def test_a_spelling_with_two_meanings_is_refused(solvers: dict[str, Solver], schedules: dict[str, Schedule]) -> None:
    with pytest.raises(ValueError, match="two meanings"):
        Registry({**SOLVERS, **solvers}, {**SCHEDULES, **schedules}, REGISTRY.default)


@pytest.mark.parametrize(
    ("solvers", "default"),
    [
        ({"ddim": replace(SOLVERS["ddim"], a1111_schedule="karras")}, REGISTRY.default),
        ({}, ("ddim", "karras")),
    ],
)
def test_a_default_that_cannot_be_followed_is_refused(solvers: dict[str, Solver], default: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="sampler ddim has no schedule 'karras'"):
        Registry({**SOLVERS, **solvers}, SCHEDULES, default)
