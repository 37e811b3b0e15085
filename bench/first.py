"""The first job of a fresh worker beside its second: what warming up leaves undone. `python -m bench.first`

Each round is a process of its own that loads and warms the bundled demo model and then draws the same job twice.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench.common import parse, ratio, report, summary
from bench.demo import PROMPT

SCRIPT = """
import asyncio, json, sys, time
from pathlib import Path
from worker.job import run_job
from worker.settings import BUNDLED_WEIGHTS, read_settings
from worker.startup import start

outputs, steps, prompt = sys.argv[1:]
environ = {"SD_WEIGHTS": str(BUNDLED_WEIGHTS), "SD_OUTPUTS": outputs, "LOG_LEVEL": "ERROR"}
service = start(read_settings(environ))
seconds = []
for _ in range(2):
    started = time.perf_counter()
    response = asyncio.run(run_job({"input": {"prompt": prompt, "seed": 42, "steps": int(steps)}}, service))
    seconds.append(time.perf_counter() - started)
    assert response["message"] == "success", response
print(json.dumps(seconds))
"""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=7)
    steps = 2 if options.tiny else 20
    arguments = [sys.executable, "-c", SCRIPT, str(options.cache / "outputs"), str(steps), PROMPT]
    pairs = [
        json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        for _ in range(options.rounds)
    ]
    first, second = ([pair[index] for pair in pairs] for index in range(2))
    return report(
        "first",
        options,
        model="tiny" if options.tiny else "demo",
        steps=steps,
        first_s=summary(first),
        second_s=summary(second),
        ratio=ratio(first, second),
    )


if __name__ == "__main__":
    main()
