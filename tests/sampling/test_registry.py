from dataclasses import replace

import pytest

from sd_core.errors import InvalidRequest
from sd_core.sampling.names import Registry
from sd_core.sampling.registry import (
    REGISTRY,
    SCHEDULES,
    SOLVERS,
    a1111_label,
    is_sampler,
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
        # RunPod's Stable Diffusion worker.
        ("DPM-S", ("dpmpp_2s_a", "default")),
        ("HEUN", ("heun", "default")),
        ("IPNDM", ("ipndm", "default")),
        ("KDPM2-A", ("dpm2_a", "default")),
        ("KDPM2-D", ("dpm2", "default")),
        ("PNDM", ("plms", "default")),
        ("K-LMS", ("lms", "default")),
        ("KLMS", ("lms", "default")),
        # The exact id is canonical; other spellings of A1111's label are A1111's.
        ("dpm2", ("dpm2", "default")),
        ("DPM2", ("dpm2", "karras")),
        ("k_dpm_2", ("dpm2", "default")),
        ("k_dpm_2_ancestral", ("dpm2_a", "default")),
        ("k_dpmpp_2m_ka", ("dpmpp_2m", "karras")),
        ("DPM2 a Karras", ("dpm2_a", "karras")),
        ("DPM++ 2S a", ("dpmpp_2s_a", "karras")),
        ("DPM++ SDE", ("dpmpp_sde", "karras")),
        ("DPM++ 2M SDE", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ 2M SDE Karras", ("dpmpp_2m_sde", "karras")),
        ("DPM++ 2M SDE Heun", ("dpmpp_2m_sde_heun", "exponential")),
        ("DPM++ 2M SDE Heun Exponential", ("dpmpp_2m_sde_heun", "exponential")),
        ("DPM++ 3M SDE", ("dpmpp_3m_sde", "exponential")),
        ("DPM++ 2M SGM Uniform", ("dpmpp_2m", "sgm_uniform")),
        ("Euler Align Your Steps", ("euler", "ays")),
        ("Euler Align Your Steps GITS", ("euler", "ays_gits")),
        ("Euler KL Optimal", ("euler", "kl_optimal")),
        ("Euler DDIM", ("euler", "ddim_uniform")),
        ("LMS Karras", ("lms", "karras")),
        ("UniPC", ("unipc", "default")),
        ("LCM", ("lcm", "default")),
        ("Restart", ("restart", "default")),
        ("PLMS", ("plms", "default")),
        ("IPNDM_V", ("ipndm_v", "default")),
        ("HeunPP2", ("heunpp2", "default")),
        ("Euler a CFG++", ("euler_a_cfg_pp", "default")),
        # ComfyUI.
        ("dpm_2_ancestral", ("dpm2_a", "default")),
        ("dpmpp_2s_ancestral", ("dpmpp_2s_a", "default")),
        ("dpmpp_sde_gpu", ("dpmpp_sde", "default")),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", "default")),
        ("dpmpp_2m_sde_heun_gpu", ("dpmpp_2m_sde_heun", "default")),
        ("dpmpp_3m_sde_gpu", ("dpmpp_3m_sde", "default")),
        ("euler_ancestral_cfg_pp", ("euler_a_cfg_pp", "default")),
        ("dpmpp_2m_cfg_pp", ("dpmpp_2m_cfg_pp", "default")),
        ("uni_pc_bh2", ("unipc", "default")),
        ("uni_pc", ("unipc", "default")),
        # diffusers.
        ("PNDMScheduler", ("plms", "default")),
        ("LMSDiscreteScheduler", ("lms", "default")),
        ("KDPM2DiscreteScheduler", ("dpm2", "default")),
        ("KDPM2AncestralDiscreteScheduler", ("dpm2_a", "default")),
        ("DPMSolverSinglestepScheduler", ("dpmpp_2s_a", "default")),
        ("DPMSolverSDEScheduler", ("dpmpp_sde", "default")),
        ("DEISMultistepScheduler", ("deis", "default")),
        ("UniPCMultistepScheduler", ("unipc", "default")),
        ("IPNDMScheduler", ("ipndm", "default")),
        ("LCMScheduler", ("lcm", "default")),
        ("TCDScheduler", ("tcd", "default")),
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


@pytest.mark.parametrize(
    ("spelling", "schedule"),
    [
        ("SGMUniform", "sgm_uniform"),
        ("simple", "simple"),
        ("ddim", "ddim_uniform"),
        ("align_your_steps", "ays"),
        ("align_your_steps_GITS", "ays_gits"),
        ("kl_optimal", "kl_optimal"),
        ("linear_quadratic", "linear_quadratic"),
        ("Polyexponential", "polyexponential"),
        ("uniform", "default"),
    ],
)
def test_schedules_of_other_tools(spelling: str, schedule: str) -> None:
    assert resolve("Euler", spelling) == ("euler", schedule)


def test_a_name_of_both_is_a_sampler_and_beside_a_sampler_a_schedule() -> None:
    assert is_sampler("DDIM") and is_schedule("DDIM")
    assert resolve("DDIM", None) == ("ddim", "default")
    assert resolve("euler", "DDIM") == ("euler", "ddim_uniform")
    assert is_schedule("ddim_uniform") and not is_sampler("ddim_uniform"), "not DDIM with the schedule Uniform"
    assert is_sampler("DDIM Uniform")


@pytest.mark.parametrize("name", ["ddim", "ddpm", "plms", "lcm", "tcd", "restart"])
def test_samplers_with_their_own_grid_follow_no_schedule(name: str) -> None:
    assert list(SOLVERS[name].schedules) == ["default"]
    with pytest.raises(InvalidRequest, match=f"sampler {name} has no schedule 'karras'; it has default"):
        resolve(name, "karras")


@pytest.mark.parametrize("spelling", ["default", "Uniform", "normal", "Karras", "KARRAS", "Automatic"])
def test_spellings_of_schedules(spelling: str) -> None:
    assert is_schedule(spelling)


@pytest.mark.parametrize("name", ["Nonesuch", "euler", "Euler Karras", "", "scheduler", "k"])
def test_what_is_not_a_schedule(name: str) -> None:
    assert not is_schedule(name)


@pytest.mark.parametrize(
    ("sampler", "schedule", "says"),
    [
        ("eulr", None, "sampler is 'eulr'; did you mean 'euler'"),
        ("DPM++ 2M Krras", None, "did you mean 'dpmpp_2m_karras'"),
        ("", None, "sampler is ''; known: ddpm"),
        ("Scheduler", None, "sampler is 'Scheduler'"),
        ("zzz", None, "known: ddpm, ddim, plms, lms, euler, euler_a, heun, heunpp2, dpm2, dpm2_a and 16 more"),
        ("Karras", None, "sampler is 'Karras'"),
        ("euler", "karas", "schedule is 'karas'; did you mean 'karras'"),
        ("DPM++ 2M", "Nonesuch", "schedule is 'Nonesuch'; known: default, karras"),
        ("euler", "algn your stps", "schedule is 'algn your stps'; known: default"),
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
        many.resolve("zzz", None)
    assert str(refused.value).endswith("and 20 more")
    with pytest.raises(InvalidRequest) as refused:
        many.resolve("numbr_7", None)
    assert "did you mean 'number_7'" in str(refused.value) and "known" not in str(refused.value)


def test_names_are_listed() -> None:
    assert {"euler", "euler_karras", "dpmpp_2m_karras", "ddim"} <= set(sampler_names())
    assert "ddim_karras" not in sampler_names()
    assert schedule_names() == list(SCHEDULES) and schedule_names()[:2] == ["default", "karras"]


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
