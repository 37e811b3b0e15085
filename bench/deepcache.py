"""What `deepcache: 3` saves: one guided job with it and without, in turn. `python -m bench.deepcache`

The bundled demo model at its native size; with `--full` the random model of v1.5's size. `speedup` is the time without
it over the time with it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from bench.common import job_command_line, options_of, ratio, report, served_model, summary, time_in_turn
from bench.demo import PROMPT
from sd_core.engine.engine import Engine
from sd_core.request import Request

INTERVAL = 3


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = job_command_line(__doc__ or "", rounds=3, steps=25)
    parser.add_argument("--pictures", type=int, default=1)
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    model, packages, name = served_model(options, arguments.full)
    size, count = model.info.native_size, arguments.pictures
    steps = INTERVAL if options.tiny else arguments.steps
    plain = Request(PROMPT, seed=42, width=size, height=size, steps=steps, num_images=count)
    engine = Engine([model], max_batch=max(8, count), packages=packages)
    denoise_ms: dict[str, list[float]] = {"without": [], "with": []}

    def generate(side: str, request: Request) -> None:
        denoise_ms[side].append(engine.submit(request).result().timings_ms["denoise"])

    requests = {"without": plain, "with": replace(plain, deepcache=INTERVAL)}
    sides = {side: partial(generate, side, request) for side, request in requests.items()}
    seconds = time_in_turn(sides, options, warm_up=1)
    engine.close()
    last = {side: spent[-options.rounds :] for side, spent in denoise_ms.items()}
    return report(
        "deepcache",
        options,
        model=name,
        job={"pixels": [size, size], "steps": steps, "pictures": count, "interval": INTERVAL},
        seconds={side: summary(values) for side, values in seconds.items()},
        denoise_ms={side: summary(values, digits=1) for side, values in last.items()},
        speedup=ratio(seconds["without"], seconds["with"]),
        denoise_speedup=ratio(last["without"], last["with"]),
    )


if __name__ == "__main__":
    main()
