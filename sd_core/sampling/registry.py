"""Every solver and schedule: one line here adds one, and the tests walk these tables."""

from collections.abc import Mapping

from sd_core.sampling import names
from sd_core.sampling.consistency import lcm, tcd
from sd_core.sampling.ddpm import ddim, ddpm
from sd_core.sampling.dpm import dpm2, dpm2_a, dpmpp_2m, dpmpp_2m_cfg_pp, dpmpp_2s_a
from sd_core.sampling.dpm_sde import (
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_3m_sde,
    dpmpp_sde,
    one_interval_a_step,
    two_intervals_a_step,
)
from sd_core.sampling.euler import euler, euler_a, euler_a_cfg_pp, euler_cfg_pp
from sd_core.sampling.heun import heun, heunpp2, restart, restart_calls
from sd_core.sampling.multistep import deis, ipndm, ipndm_v, lms, one_call_more, plms
from sd_core.sampling.names import Registry
from sd_core.sampling.solver import ANCESTRAL, CHURN, Schedule, Solver, two_calls_a_step, up_to_three_calls_a_step
from sd_core.sampling.spacing import (
    ays_gits_sigmas,
    ays_sigmas,
    beta_sigmas,
    cut_consistency_steps,
    ddim_sigmas,
    ddim_uniform_sigmas,
    ddpm_sigmas,
    exponential_sigmas,
    karras_sigmas,
    kl_optimal_sigmas,
    lcm_sigmas,
    linear_quadratic_sigmas,
    sgm_uniform_sigmas,
    simple_sigmas,
    tcd_sigmas,
    turbo_sigmas,
    uniform_sigmas,
    without_next_to_last,
)
from sd_core.sampling.unipc import unipc

SCHEDULES: Mapping[str, Schedule] = {
    "default": Schedule("Uniform", uniform_sigmas, aliases=("Normal",)),
    "karras": Schedule("Karras", karras_sigmas, aliases=("ka",)),
    "exponential": Schedule("Exponential", exponential_sigmas),
    "polyexponential": Schedule("Polyexponential", exponential_sigmas),
    "sgm_uniform": Schedule("SGM Uniform", sgm_uniform_sigmas),
    "simple": Schedule("Simple", simple_sigmas),
    "ddim_uniform": Schedule("DDIM", ddim_uniform_sigmas),
    "beta": Schedule("Beta", beta_sigmas),
    "kl_optimal": Schedule("KL Optimal", kl_optimal_sigmas),
    "ays": Schedule("Align Your Steps", ays_sigmas),
    "ays_gits": Schedule("Align Your Steps GITS", ays_gits_sigmas, aliases=("GITS",)),
    "turbo": Schedule("Turbo", turbo_sigmas),
    "linear_quadratic": Schedule("Linear Quadratic", linear_quadratic_sigmas),
}

REGISTRY = Registry(
    {
        "ddpm": Solver("DDPM", ddpm, ddpm_sigmas, variance_preserving=True),
        "ddim": Solver("DDIM", ddim, ddim_sigmas, variance_preserving=True, options={"eta": 0.0}),
        "plms": Solver("PLMS", plms, ddim_sigmas, variance_preserving=True, calls=one_call_more, aliases=("PNDM",)),
        "lms": Solver("LMS", lms, aliases=("LMSDiscrete",)),
        "euler": Solver("Euler", euler, options=CHURN, aliases=("EulerDiscrete", "EULER-D")),
        "euler_a": Solver("Euler a", euler_a, options=ANCESTRAL, aliases=("euler_ancestral", "EulerAncestralDiscrete")),
        "heun": Solver("Heun", heun, calls=two_calls_a_step, options=CHURN, aliases=("HeunDiscrete",)),
        "heunpp2": Solver("HeunPP2", heunpp2, calls=up_to_three_calls_a_step, options=CHURN, aliases=("Heun++",)),
        "dpm2": Solver(
            "DPM2",
            dpm2,
            a1111_schedule="karras",
            calls=two_calls_a_step,
            options=CHURN,
            spacing=without_next_to_last,
            aliases=("KDPM2Discrete", "KDPM2-D"),
        ),
        "dpm2_a": Solver(
            "DPM2 a",
            dpm2_a,
            a1111_schedule="karras",
            calls=two_calls_a_step,
            options=ANCESTRAL,
            spacing=without_next_to_last,
            aliases=("dpm_2_ancestral", "KDPM2AncestralDiscrete"),
        ),
        "dpmpp_2s_a": Solver(
            "DPM++ 2S a",
            dpmpp_2s_a,
            a1111_schedule="karras",
            calls=two_calls_a_step,
            options=ANCESTRAL,
            aliases=("dpmpp_2s_ancestral", "DPMSolverSinglestep", "DPM-S"),
        ),
        "dpmpp_2m": Solver("DPM++ 2M", dpmpp_2m, a1111_schedule="karras", aliases=("DPMSolverMultistep", "DPM-M")),
        "dpmpp_sde": Solver(
            "DPM++ SDE",
            dpmpp_sde,
            a1111_schedule="karras",
            calls=two_calls_a_step,
            options=ANCESTRAL,
            intervals=two_intervals_a_step,
            aliases=("dpmpp_sde_gpu", "DPMSolverSDE"),
        ),
        "dpmpp_2m_sde": Solver(
            "DPM++ 2M SDE",
            dpmpp_2m_sde,
            a1111_schedule="exponential",
            options=ANCESTRAL,
            intervals=one_interval_a_step,
            aliases=("dpmpp_2m_sde_gpu",),
        ),
        "dpmpp_2m_sde_heun": Solver(
            "DPM++ 2M SDE Heun",
            dpmpp_2m_sde_heun,
            a1111_schedule="exponential",
            options=ANCESTRAL,
            intervals=one_interval_a_step,
            aliases=("dpmpp_2m_sde_heun_gpu",),
        ),
        "dpmpp_3m_sde": Solver(
            "DPM++ 3M SDE",
            dpmpp_3m_sde,
            a1111_schedule="exponential",
            options=ANCESTRAL,
            intervals=one_interval_a_step,
            spacing=without_next_to_last,
            aliases=("dpmpp_3m_sde_gpu",),
        ),
        "unipc": Solver("UniPC", unipc, aliases=("UniPCMultistep", "uni_pc_bh2")),
        "deis": Solver("DEIS", deis, aliases=("DEISMultistep",)),
        "ipndm": Solver("IPNDM", ipndm),
        "ipndm_v": Solver("IPNDM_V", ipndm_v),
        "lcm": Solver("LCM", lcm, lcm_sigmas, variance_preserving=True, strength=cut_consistency_steps),
        "tcd": Solver(
            "TCD",
            tcd,
            tcd_sigmas,
            variance_preserving=True,
            strength=cut_consistency_steps,
            options={"eta": 0.3},
            reads_schedule=True,
        ),
        "restart": Solver("Restart", restart, karras_sigmas, calls=restart_calls, options={"s_noise": 1.0}),
        "euler_cfg_pp": Solver("Euler CFG++", euler_cfg_pp, reads_uncond=True),
        "euler_a_cfg_pp": Solver(
            "Euler a CFG++",
            euler_a_cfg_pp,
            reads_uncond=True,
            options=ANCESTRAL,
            aliases=("euler_ancestral_cfg_pp",),
        ),
        "dpmpp_2m_cfg_pp": Solver("DPM++ 2M CFG++", dpmpp_2m_cfg_pp, reads_uncond=True),
    },
    SCHEDULES,
    default=("dpmpp_2m", "karras"),
)

SOLVERS = REGISTRY.solvers

OPTIONS = tuple(dict.fromkeys(name for solver in SOLVERS.values() for name in solver.options))
"""Every option that some sampler has."""

resolve = REGISTRY.resolve
is_schedule = REGISTRY.is_schedule
is_sampler = REGISTRY.is_sampler
sampler_names = REGISTRY.sampler_names
schedule_names = REGISTRY.schedule_names
a1111_label = REGISTRY.a1111_label
joined_name = names.joined_name
