"""Every solver and schedule: one line here adds one, and the tests walk these tables."""

from collections.abc import Mapping

from sd_core.sampling import names
from sd_core.sampling.ddpm import ddim, ddpm
from sd_core.sampling.dpm import dpmpp_2m
from sd_core.sampling.euler import euler, euler_a, heun
from sd_core.sampling.names import Registry
from sd_core.sampling.schedule import ddim_sigmas, ddpm_sigmas, karras_sigmas, uniform_sigmas
from sd_core.sampling.solver import Schedule, Solver, two_calls_a_step

SCHEDULES: Mapping[str, Schedule] = {
    "default": Schedule("Uniform", uniform_sigmas, aliases=("Normal",)),
    "karras": Schedule("Karras", karras_sigmas),
}

REGISTRY = Registry(
    {
        "ddpm": Solver("DDPM", ddpm, ddpm_sigmas, variance_preserving=True),
        "ddim": Solver("DDIM", ddim, ddim_sigmas, variance_preserving=True),
        "euler": Solver("Euler", euler, aliases=("EulerDiscrete", "EULER-D")),
        "euler_a": Solver("Euler a", euler_a, aliases=("euler_ancestral", "EulerAncestralDiscrete")),
        "heun": Solver("Heun", heun, calls=two_calls_a_step, aliases=("HeunDiscrete",)),
        "dpmpp_2m": Solver("DPM++ 2M", dpmpp_2m, a1111_schedule="karras", aliases=("DPMSolverMultistep", "DPM-M")),
    },
    SCHEDULES,
    default=("dpmpp_2m", "karras"),
)

SOLVERS = REGISTRY.solvers

resolve = REGISTRY.resolve
is_schedule = REGISTRY.is_schedule
is_sampler = REGISTRY.is_sampler
sampler_names = REGISTRY.sampler_names
schedule_names = REGISTRY.schedule_names
a1111_label = REGISTRY.a1111_label
joined_name = names.joined_name
