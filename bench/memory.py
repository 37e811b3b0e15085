"""The peak memory of each network's forwards, beside what the engine counts for them. `python -m bench.memory`"""

from collections.abc import Sequence
from typing import Any

from bench.common import parse, random_model, report
from tests.support.memory import KINDS, peak_and_counted


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=1)
    model = random_model(options).load(options)
    sides = (16, 24) if options.tiny else (16, 32)
    forwards = {f"{kind} of {side}x{side}": peak_and_counted(model, kind, side) for side in sides for kind in KINDS}
    return report(
        "memory",
        options,
        forwards=forwards,
        largest_share=round(max(forward["peak_mb"] / forward["counted_mb"] for forward in forwards.values()), 3),
    )


if __name__ == "__main__":
    main()
