"""Eight jobs with eight samplers in one batch, beside eight with euler alone. `python -m bench.samplers [--full]`

Every sampler makes as many calls, one a step; three of them draw Brownian noise. The bundled demo model at its native
size, with guidance, or with `--full` the random model of v1.5's size. `waiting` is the share of the jobs' time in which
a picture waits for its noise.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bench.common import job_command_line, options_of, ratio, report, served_model, summary, time_in_turn
from bench.demo import PROMPT
from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import Prepared, prepare
from sd_core.request import Request
from sd_core.work import HostTask, Picture, answering

SAMPLERS = ("euler", "euler_a", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "unipc")


class Waiting:
    """Adds up how long pictures wait for the host while they are sampled."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def prepared(self, request: Request, model: StableDiffusion) -> Prepared:
        """The pictures of a request, whose waiting counts."""
        made = prepare(request, model)
        return replace(made, pictures=[self._timed(picture) for picture in made.pictures])

    def _timed(self, picture: Picture) -> Picture:
        def answer(asked: Any) -> Generator[Any, Any, Any]:
            started = time.perf_counter()
            result = yield asked
            if isinstance(asked, HostTask) and asked.waits:
                self.seconds += time.perf_counter() - started
            return result

        return answering(picture, answer)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = job_command_line(__doc__ or "", rounds=5, steps=20)
    parser.add_argument("--rng", choices=("cpu", "nv"), default="cpu")
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    model, packages, name = served_model(options, arguments.full)
    size = model.info.native_size
    steps = 4 if options.tiny else arguments.steps
    request = Request(PROMPT, seed=42, width=size, height=size, steps=steps, schedule="karras", rng=arguments.rng)
    engine = Engine([model], len(SAMPLERS), packages=packages)
    waiting = {"mixed": Waiting(), "euler": Waiting()}

    def generate(side: str) -> None:
        jobs = [
            replace(request, seed=seed, sampler=sampler if side == "mixed" else "euler")
            for seed, sampler in enumerate(SAMPLERS)
        ]
        futures = [engine.run(partial(waiting[side].prepared, job, model), job) for job in jobs]
        for future in futures:
            future.result()

    seconds = time_in_turn({side: partial(generate, side) for side in waiting}, options, warm_up=1)
    engine.close()
    # Jobs run side by side, so each of them takes the whole time; the warm-up waits too.
    in_jobs = sum(seconds["mixed"]) / options.rounds * (options.rounds + 1) * len(SAMPLERS)
    return report(
        "samplers",
        options,
        model=name,
        job={"pixels": [size, size], "steps": steps, "jobs": len(SAMPLERS), "rng": arguments.rng},
        seconds={side: summary(values) for side, values in seconds.items()},
        ratio=ratio(seconds["mixed"], seconds["euler"]),
        waiting=round(waiting["mixed"].seconds / in_jobs, 5),
    )


if __name__ == "__main__":
    main()
