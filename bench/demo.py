"""One image of the bundled demo model, from the request to its PNG. `python -m bench.demo`

20 steps, alone, with guidance; with `--full` the random model of v1.5's size.
"""

from collections.abc import Sequence
from typing import Any

from bench.common import command_line, full_option, options_of, report, served_model, summary, time_in_turn
from sd_core.engine.engine import Engine
from sd_core.request import Request, Result
from worker.api.response import encode

PROMPT = "a large red star on a blue background"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = command_line(__doc__ or "", rounds=7)
    full_option(parser)
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    model, packages, name = served_model(options, arguments.full)
    engine = Engine([model], max_batch=1, packages=packages)
    size = model.info.native_size
    steps = 2 if options.tiny else 20
    request = Request(prompt=PROMPT, seed=42, width=size, height=size, steps=steps)
    results: list[Result] = []

    def generate() -> None:
        result = engine.submit(request).result()
        encode(result.images[0], "png", "")
        results.append(result)

    seconds = time_in_turn({"ours": generate}, options)
    engine.close()
    return report(
        "demo",
        options,
        model=name,
        image={"pixels": [size, size], "steps": steps, "prompt": PROMPT},
        seconds=summary(seconds["ours"]),
        timings_ms=results[-1].timings_ms,
    )


if __name__ == "__main__":
    main()
