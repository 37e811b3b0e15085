"""RunPod's way in: importing this module loads and warms the model, running it starts the SDK.

`python handler.py` draws test_input.json, with `--test_input '{"input": {...}}'` what is given there. With
`--rp_serve_api` it serves /run, /runsync and /status. On the platform it takes jobs from the queue.
"""

import functools
import gc
import importlib
import multiprocessing
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.progress import Send
    from worker.service import Service


@functools.cache
def service() -> "Service":
    """The one warmed worker of this process. Ends the process with one message where there can be none."""
    from worker.settings import SettingsError, read_settings
    from worker.startup import StartupError, start

    try:
        return start(read_settings())
    except (SettingsError, StartupError) as error:
        sys.exit(str(error))


async def handler(job: dict[str, Any], send: "Send | None" = None) -> dict[str, Any]:
    """`{"id": ..., "input": {...}}`, as the platform delivers a job -> its response, a bad job's too.

    With `send`, which the platform's loop gives, the job's progress is told while it is drawn.
    """
    from worker.service import run_job

    return await run_job(job, service(), send)


def main() -> None:
    from runpod.serverless.modules.rp_logger import RunPodLogger

    from worker.doors import runpod as runpod_loop
    from worker.log import configure_sdk

    settings = service().settings
    configure_sdk(RunPodLogger(), settings.log_level)
    runpod_loop.start(handler, settings.max_concurrency)
    if service().engine.failure is not None:
        sys.exit(1)


# The SDK's heartbeat is a child process, and under spawn it imports this module again: it needs no model.
if multiprocessing.parent_process() is None:
    # What imports make stays: looking for garbage in it slows the start, and is of no use later either.
    gc.disable()
    if __name__ == "__main__":
        # The SDK's import waits a second for another program; meanwhile torch and the weights are loaded.
        threading.Thread(target=importlib.import_module, args=("runpod.serverless",), daemon=True).start()
    service()
    gc.freeze()
    gc.enable()

if __name__ == "__main__":
    main()
