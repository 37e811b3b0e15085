"""Jobs of mixed steps, samplers and guidance through the real SDK's loop. `python -m bench.throughput [--reference]`

Workers are processes before a stand-in of the platform: ours with SD_MAX_BATCH=16 (`--batch`), ours with
SD_MAX_BATCH=1, and with `--reference` a plain worker on diffusers. At each concurrency that many clients ask, each for
its next job as it is answered, and SD_MAX_CONCURRENCY is their number; the plain worker draws one job at a time. Every
side draws the same jobs and takes its turn. `sharing` measures the engine and the UNet alone, without the platform.

The SDK takes up to 0.1 s to begin a job, and up to a second to ask for the next one after its queue was full: all of
that is in the latencies, on every side.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.common import (
    Options,
    command_line,
    full_option,
    options_of,
    ratio,
    report,
    served_checkpoint,
    served_model,
    summary,
    worker_environment,
)
from bench.loop import IDLE_S, Served, Worker, latency, running
from bench.plot import line_plot
from bench.sharing import measure_sharing
from tests.support.jobs import PROMPTS, SAMPLERS, mixed_jobs

LEVELS = (1, 2, 4, 8, 16)
LONE_JOBS = 5
# How much oftener than the loop, which takes minutes, the engine alone is timed.
SHARING_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """What the command line asked for beyond `Options`."""

    options: Options
    full: bool
    batch: int
    levels: tuple[int, ...]
    jobs: int
    reference: bool
    only: str | None
    plot: Path | None

    @property
    def weights(self) -> Path:
        return served_checkpoint(self.options, self.full)[0].parent

    @property
    def steps(self) -> tuple[int, int]:
        """The fewest and the most steps of a job."""
        return (2, 5) if self.options.tiny else (15, 50)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    plan = _plan(argv)
    results: dict[str, Any] = {}
    if plan.only != "loop":
        steps = plan.batch if plan.options.tiny else 20
        often = replace(plan.options, rounds=SHARING_ROUNDS * plan.options.rounds)
        model, packages, _ = served_model(plan.options, plan.full)
        results["sharing"] = measure_sharing(model, packages, often, plan.batch, steps, PROMPTS[0])
    if plan.only != "sharing":
        results |= _through_the_loop(plan)
    if {"sharing", "concurrency"} <= results.keys():
        busiest = results["concurrency"][str(max(plan.levels))]
        results["worker_gain_over_unet_gain"] = round(busiest["gain"] / results["sharing"]["unet"]["gain"], 3)
    if plan.plot is not None and "concurrency" in results:
        plan.plot.write_text(_plot(results["concurrency"]), encoding="utf-8")
    _, name = served_checkpoint(plan.options, plan.full)
    return report("throughput", plan.options, **{"model": name, "batch": plan.batch, **results})


def _plan(argv: Sequence[str] | None) -> Plan:
    parser = command_line(__doc__ or "", rounds=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    full_option(parser)
    parser.add_argument("--batch", type=int, default=16, help="SD_MAX_BATCH of our first side")
    parser.add_argument("--concurrency", type=int, nargs="+", default=LEVELS, help="how many clients ask at once")
    parser.add_argument("--jobs", type=int, default=32, help="jobs at each concurrency, at least one a client")
    parser.add_argument("--reference", action="store_true", help="measure a plain worker on diffusers too")
    parser.add_argument("--only", choices=("loop", "sharing"), help="one half of the measurement")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write jobs a second over concurrency as an SVG")
    asked = parser.parse_args(argv)
    levels = tuple(asked.concurrency)
    return Plan(options_of(asked), asked.full, asked.batch, levels, asked.jobs, asked.reference, asked.only, asked.plot)


def _through_the_loop(plan: Plan) -> dict[str, Any]:
    shared, single = f"batch_{plan.batch}", "batch_1"
    sides = {shared: plan.batch, single: 1, **({"diffusers": 0} if plan.reference else {})}
    lone: dict[str, list[float]] = {side: [] for side in sides}
    levels: dict[str, Any] = {}
    for clients in plan.levels:
        served: dict[str, list[Served]] = {side: [] for side in sides}
        for round_number in range(plan.options.rounds):
            for side, batch in sides.items():
                with _worker(plan, batch, clients) as worker:
                    worker.serve(mixed_jobs(clients, (2, 2), "warm-up"), clients)
                    jobs = mixed_jobs(max(plan.jobs, clients), plan.steps, f"round-{round_number}")
                    served[side].append(worker.serve(jobs, clients))
                    if clients == min(plan.levels):
                        lone[side] += _lone_seconds(worker, plan)
        levels[str(clients)] = {
            **{side: _rates(rounds) for side, rounds in served.items()},
            "gain": ratio(_job_seconds(served[single]), _job_seconds(served[shared])),
        }
    fewest, most = plan.steps
    return {
        "jobs": {"count": plan.jobs, "steps": [fewest, most], "samplers": SAMPLERS, "guided": "two in three"},
        "lone_job_s": {side: summary(seconds) for side, seconds in lone.items()},
        "concurrency": levels,
    }


def _worker(plan: Plan, batch: int, clients: int) -> Any:
    arguments = ["handler.py"] if batch else ["-m", "bench.diffusers_handler"]
    environment = {
        **worker_environment(plan.weights, plan.options),
        "SD_MAX_BATCH": str(batch),
        "SD_MAX_CONCURRENCY": str(clients),
        "LOG_LEVEL": "ERROR",
    }
    return running(arguments, environment)


def _lone_seconds(worker: Worker, plan: Plan) -> list[float]:
    """Latencies of one guided picture, each asked for when the worker waits for a job."""
    seconds = []
    for index in range(1 if plan.options.tiny else LONE_JOBS):
        time.sleep(IDLE_S)
        (job,) = mixed_jobs(1, (plan.steps[0], plan.steps[0]), f"lone-{index}-{time.monotonic_ns()}")
        seconds += worker.serve([job], 1).latencies
    return seconds


def _job_seconds(rounds: Sequence[Served]) -> list[float]:
    """Seconds a job, of each round."""
    return [served.seconds / len(served.answers) for served in rounds]


def _rates(rounds: Sequence[Served]) -> dict[str, Any]:
    seconds = sum(served.seconds for served in rounds)
    return {
        "jobs_per_s": round(sum(len(served.answers) for served in rounds) / seconds, 4),
        "images_per_s": round(sum(served.pictures for served in rounds) / seconds, 4),
        "latency_s": latency([value for served in rounds for value in served.latencies]),
    }


def _plot(levels: dict[str, Any]) -> str:
    sides = [name for name in next(iter(levels.values())) if name != "gain"]
    lines = {side: [level[side]["jobs_per_s"] for level in levels.values()] for side in sides}
    return line_plot("Throughput", "jobs under way", "jobs a second", list(levels), lines)


if __name__ == "__main__":
    main()
