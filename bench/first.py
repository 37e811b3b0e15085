"""The first job of a fresh worker beside its second, to show what the warm-up does not cover. `python -m bench.first`

Each round is a new process that loads and warms up the bundled demo model and then runs the same job twice. With
`--full` it is the random model of v1.5's size, whose weights are cast and packed, on a CPU, as the first job uses them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench.common import (
    job_command_line,
    options_of,
    ratio,
    report,
    served_checkpoint,
    summary,
    worker_environment,
)
from bench.demo import PROMPT

SCRIPT = """
import asyncio, json, sys, time
from worker.service import run_job
from worker.settings import read_settings
from worker.startup import start

environ, steps, prompt = json.loads(sys.argv[1]), *sys.argv[2:]
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
    parser = job_command_line(__doc__ or "", rounds=7, steps=20)
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    steps = 2 if options.tiny else arguments.steps
    checkpoint, name = served_checkpoint(options, arguments.full)
    environ = {**worker_environment(checkpoint, options), "LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(environ), str(steps), PROMPT]
    pairs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(options.rounds)
    ]
    first, second = ([pair[index] for pair in pairs] for index in range(2))
    return report(
        "first",
        options,
        model=name,
        steps=steps,
        first_s=summary(first),
        second_s=summary(second),
        ratio=ratio(first, second),
    )


if __name__ == "__main__":
    main()
