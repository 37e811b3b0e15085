"""One picture of the bundled demo model: 20 steps, alone, with guidance. `python -m bench.demo`"""

from collections.abc import Sequence
from typing import Any

from bench.common import demo_model, parse, report, summary, time_in_turn
from sd_core.contracts import GenerationRequest, GenerationResult
from sd_core.engine.engine import Engine

PROMPT = "a large red star on a blue background"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=7)
    model = demo_model(options)
    engine = Engine(model, max_batch=1)
    size = model.info.native_size
    steps = 2 if options.tiny else 20
    request = GenerationRequest(prompt=PROMPT, seed=42, width=size, height=size, steps=steps)
    results: list[GenerationResult] = []
    seconds = time_in_turn({"ours": lambda: results.append(engine.submit(request).result())}, options)
    engine.close()
    return report(
        "demo",
        options,
        model="tiny" if options.tiny else "demo",
        picture={"pixels": [size, size], "steps": steps, "prompt": PROMPT},
        seconds=summary(seconds["ours"]),
        timings_ms=results[-1].timings_ms,
    )


if __name__ == "__main__":
    main()
