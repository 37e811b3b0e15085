"""How many images should share a forward: one job of 16, at every `SD_MAX_BATCH`. `python -m bench.batch`

The bundled demo model at its native size, with guidance; with `--full` the random model of v1.5's size. The default of
`SD_MAX_BATCH` on a CPU is chosen from these numbers.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench.common import job_command_line, options_of, ratio, report, served_model, summary, time_in_turn
from bench.demo import PROMPT
from sd_core.engine.engine import Engine
from sd_core.request import Request

IMAGES = 16
BATCHES = (1, 2, 4, 8, 16)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = job_command_line(__doc__ or "", rounds=3, steps=8)
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    model, packages, name = served_model(options, arguments.full)
    size = model.info.native_size
    steps = 1 if options.tiny else arguments.steps
    request = Request(PROMPT, seed=42, width=size, height=size, steps=steps, num_images=IMAGES)
    engines = {str(batch): Engine([model], batch, packages=packages) for batch in BATCHES}

    def generate(engine: Engine) -> None:
        engine.submit(request).result()

    seconds = time_in_turn({name: partial(generate, engine) for name, engine in engines.items()}, options, warm_up=1)
    for engine in engines.values():
        engine.close()
    return report(
        "batch",
        options,
        model=name,
        job={"pixels": [size, size], "steps": steps, "images": IMAGES},
        seconds={name: summary(values) for name, values in seconds.items()},
        images_per_s={name: round(IMAGES / statistics.median(values), 3) for name, values in seconds.items()},
        ratio_to_batch_1={name: ratio(values, seconds["1"]) for name, values in seconds.items()},
    )


if __name__ == "__main__":
    main()
