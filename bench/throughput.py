"""Jobs of mixed steps, samplers and guidance through the real SDK's loop. `python -m bench.throughput [--reference]`

Workers are processes before a stand-in for the platform: ours with SD_MAX_BATCH=16 (`--batch`), ours with
SD_MAX_BATCH=1, and with `--reference` a plain worker on diffusers. At each concurrency there are that many clients, and
SD_MAX_CONCURRENCY is their number. Each client sends its next job once the last one is answered; the plain worker runs
one job at a time. The sides run the same jobs, alternately. `sharing` measures the engine and the UNet alone, without
the platform.

The SDK takes up to 0.1 s to begin a job, and up to a second to ask for the next one after its queue was full. The
latencies of every side include that.
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
# Rounds of the engine alone for each round of the loop, which takes minutes.
SHARING_ROUNDS = 3


@dataclass(frozen=True)
class Plan:
    """The options of this script, beside the common `Options`."""

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
        """The smallest and the largest number of steps of a job."""
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
    parser.add_argument("--concurrency", type=int, nargs="+", default=LEVELS, help="numbers of clients at once")
    parser.add_argument("--jobs", type=int, default=32, help="jobs at each concurrency, at least one per client")
    parser.add_argument("--reference", action="store_true", help="also measure a plain worker on diffusers")
    parser.add_argument("--only", choices=("loop", "sharing"), help="only this half of the measurement")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write jobs per second over concurrency as an SVG")
    given = parser.parse_args(argv)
    levels = tuple(given.concurrency)
    return Plan(options_of(given), given.full, given.batch, levels, given.jobs, given.reference, given.only, given.plot)


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
    min_steps, max_steps = plan.steps
    return {
        "jobs": {"count": plan.jobs, "steps": [min_steps, max_steps], "samplers": SAMPLERS, "guided": "two in three"},
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
    """Latencies of one guided image, each requested while the worker is idle."""
    seconds = []
    for index in range(1 if plan.options.tiny else LONE_JOBS):
        time.sleep(IDLE_S)
        (job,) = mixed_jobs(1, (plan.steps[0], plan.steps[0]), f"lone-{index}-{time.monotonic_ns()}")
        seconds += worker.serve([job], 1).latencies
    return seconds


def _job_seconds(rounds: Sequence[Served]) -> list[float]:
    """Seconds per job, of each round."""
    return [served.seconds / len(served.answers) for served in rounds]


def _rates(rounds: Sequence[Served]) -> dict[str, Any]:
    seconds = sum(served.seconds for served in rounds)
    return {
        "jobs_per_s": round(sum(len(served.answers) for served in rounds) / seconds, 4),
        "images_per_s": round(sum(served.images for served in rounds) / seconds, 4),
        "latency_s": latency([value for served in rounds for value in served.latencies]),
    }


def _plot(levels: dict[str, Any]) -> str:
    sides = [name for name in next(iter(levels.values())) if name != "gain"]
    lines = {side: [level[side]["jobs_per_s"] for level in levels.values()] for side in sides}
    return line_plot("Throughput", "concurrent clients", "jobs per second", list(levels), lines)


if __name__ == "__main__":
    main()
