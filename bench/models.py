"""What several checkpoints in one worker cost. `python -m bench.models [--full]`

`alternating_s` are jobs one after another that alternate between two loaded checkpoints, `sorted_s` the same jobs
sorted by checkpoint. `reading_s` is reading the second checkpoint, `steps_s` a job on the first one, and `together_s`
both at once, with `longest_step` over the median of that job's steps meanwhile. No network is the same in both files.
"""

import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from bench.common import job_command_line, options_of, ratio, report, served_checkpoint, summary, time_in_turn
from bench.demo import PROMPT
from sd_core.catalogue import Catalogue, Kind
from sd_core.engine.checkpoints import Checkpoints
from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import read_prompt
from sd_core.request import Progress, Request, Result
from sd_core.text.tokenizer import MERGES_FILE, VOCAB_FILE

FIRST, SECOND = "first", "second"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = job_command_line(__doc__ or "", rounds=5, steps=20)
    parser.add_argument("--jobs", type=int, default=8)
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    checkpoint, name = served_checkpoint(options, arguments.full)
    folder = _two_checkpoints(checkpoint, options.cache / f"two-of-{name}")
    start = partial(_engine, folder, str(options.device), options.dtype)
    jobs = 2 if options.tiny else arguments.jobs
    side = 64 if options.tiny else 512 if arguments.full else 128
    steps = 4 if options.tiny else arguments.steps
    request = Request(PROMPT, seed=1, steps=steps, width=side, height=side)
    names = [FIRST, SECOND] * (jobs // 2)
    engine = start()
    orders = {"alternating": names, "sorted": sorted(names)}
    seconds = time_in_turn({order: partial(_run_all, engine, request, orders[order]) for order in orders}, options, 1)
    engine.close()
    alone, apart, together, longest = (list[float]() for _ in range(4))
    for _ in range(options.rounds):
        engine = start()
        engine.submit(replace(request, model=FIRST)).result()  # packs the weights
        alone.append(_timed(partial(_steps, engine, request)))
        apart.append(_timed(partial(_read, engine, request)))
        engine.close()
        engine = start()
        engine.submit(replace(request, model=FIRST)).result()
        begun = time.perf_counter()
        reading = _reading(engine, request)
        intervals = _steps(engine, request)
        reading.result()
        together.append(time.perf_counter() - begun)
        longest.append(max(intervals) / statistics.median(intervals))
        engine.close()
    sums = [one + other for one, other in zip(alone, apart, strict=True)]
    return report(
        "models",
        options,
        model=name,
        steps=steps,
        jobs=len(names),
        alternating_s=summary(seconds["alternating"]),
        sorted_s=summary(seconds["sorted"]),
        ratio=ratio(seconds["alternating"], seconds["sorted"]),
        steps_s=summary(alone),
        reading_s=summary(apart),
        together_s=summary(together),
        together_ratio=ratio(together, sums),
        longest_step=summary(longest),
    )


def _two_checkpoints(source: Path, folder: Path) -> Path:
    """A folder with a checkpoint and another one, all of whose weights differ, written at its first use."""
    if not (folder / f"{SECOND}.safetensors").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file in (VOCAB_FILE, MERGES_FILE):
            shutil.copy(source.parent / file, folder)
        shutil.copy(source, folder / f"{FIRST}.safetensors")
        with safe_open(source, framework="pt") as opened:
            other = {name: 1.01 * opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
            save_file(other, folder / f"{SECOND}.part", opened.metadata())
        (folder / f"{SECOND}.part").rename(folder / f"{SECOND}.safetensors")
    return folder


def _engine(folder: Path, device: str, dtype: str) -> Engine:
    """An engine that has loaded the first checkpoint and knows the second."""
    model = StableDiffusion.load(folder / f"{FIRST}.safetensors", folder, device, dtype)
    return Engine([model], 8, checkpoints=Checkpoints([model], Catalogue({Kind.CHECKPOINT: (folder,)}, max_depth=1)))


def _run_all(engine: Engine, request: Request, names: Sequence[str]) -> None:
    for name in names:
        engine.submit(replace(request, model=name)).result()


def _steps(engine: Engine, request: Request) -> list[float]:
    """Run a job on the first checkpoint; the seconds of each of its steps but the first."""
    moments: list[float] = []

    def observe(_progress: Progress) -> None:
        moments.append(time.perf_counter())

    engine.submit(replace(request, model=FIRST), observe).result()
    return [after - before for before, after in pairwise(moments)]


def _reading(engine: Engine, request: Request) -> Future[Result]:
    """A job that has the second checkpoint read and encodes a prompt with it."""
    return engine.run(partial(read_prompt, "", engine.models[FIRST]), replace(request, model=SECOND))


def _read(engine: Engine, request: Request) -> None:
    _reading(engine, request).result()


def _timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
