"""RunPod's entry point. Importing this module loads and warms up the model; running it starts RunPod's SDK.

    python handler.py                                     run the job in test_input.json
    python handler.py --test_input '{"input": {...}}'     run this job
    python handler.py --rp_serve_api                      serve /run, /runsync and /status

On the platform it takes jobs from the endpoint's queue.
"""

import functools
import gc
import multiprocessing
import sys
from typing import TYPE_CHECKING, Any

from worker.settings import StartupError, read_settings

if TYPE_CHECKING:
    from worker.progress import Send
    from worker.service import Service


@functools.cache
def service() -> "Service":
    """The one worker of this process, ready for jobs. Raises `StartupError`."""
    from worker.startup import start

    return start(read_settings())


async def handler(job: dict[str, Any], send: "Send | None" = None) -> dict[str, Any]:
    """Run `{"id": ..., "input": {...}}` and return the response, also for a bad job. `send` posts its progress."""
    from worker.service import run_job

    return await run_job(job, service(), send)


# The SDK's heartbeat is a child process, which under spawn imports this module again. It needs no model.
if multiprocessing.parent_process() is None:
    try:
        if __name__ == "__main__":
            from worker.doors import command_line

            command_line.prepare(sys.argv[1:], read_settings())
        gc.disable()  # Imports and the model leave little garbage and much that stays: searching it costs a slow start.
        service()
        gc.freeze()
        gc.enable()
    except StartupError as error:
        sys.exit(str(error))

if __name__ == "__main__":
    from worker.doors import runpod

    sys.exit(runpod.run(handler, service()))
