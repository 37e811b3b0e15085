"""Settings -> a worker that is ready, or one message: what was looked for, where, and what mends it."""

import atexit
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sd_core.engine.engine import Engine
from sd_core.engine.graphs import COMPILED, Bucket, Step
from sd_core.errors import ModelError, SDError
from sd_core.pipeline.model import StableDiffusion
from worker import log
from worker.api.job import Limits
from worker.api.response import encode
from worker.identity import ModelIdentity
from worker.service import Service
from worker.settings import Settings

USUAL_NAME = "v1-5-pruned-emaonly"
V15_SOURCE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOKENIZER_SOURCE = "openai/clip-vit-large-patch14"
TOKENIZER_FILES = ("vocab.json", "merges.txt")
SUFFIXES = (".safetensors", ".ckpt")
MOST_LISTED = 20
_DEVICES = Path("/dev")


class StartupError(Exception):
    """The worker cannot start. The text is the whole message for the operator."""


@dataclass(frozen=True)
class Found:
    """A checkpoint, perhaps still to be converted, and the directory with its tokenizer's files."""

    checkpoint: Path

    @property
    def directory(self) -> Path:
        return self.checkpoint.parent


class Phases:
    """Where the time of the start goes: `imports` is all that went before this was made, where the system tells."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        if (age := process_age()) is not None:
            self._seconds["imports"] = age
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name], self._last = now - self._last, now

    def milliseconds(self) -> dict[str, float]:
        spent = {**self._seconds, "total": sum(self._seconds.values())}
        return {name: round(1000 * seconds, 1) for name, seconds in spent.items()}


def process_age() -> float | None:
    """Seconds since this process began, on Linux."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    # The fields after the name, which may hold spaces itself, begin with the third; the 22nd counts from the boot.
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def start(settings: Settings) -> Service:
    """Find, convert where needed, load and warm the model. Raises `StartupError`."""
    log.configure(settings.log_level)
    phases = Phases()
    _check_outputs(settings.outputs)
    _check_gpu(settings)
    found = find(settings)
    try:
        return _load(settings, found, phases)
    except (SDError, OSError, RuntimeError) as error:  # the last are torch's, of devices and drivers
        log.log.debug("the start failed", exc_info=error)
        remedy = _remedy(settings, found.checkpoint, error)
        raise StartupError(f"The model {found.checkpoint} could not be loaded: {error}\n{remedy}") from error


def _remedy(settings: Settings, checkpoint: Path, error: Exception) -> str:
    if isinstance(error, ModelError | OSError):
        return (
            f"To see what the file is:\n  python -m builder inspect {checkpoint}\n"
            f"To make it anew from a published checkpoint:\n"
            f"  python -m builder convert SOURCE {checkpoint.with_suffix('.safetensors')} --force"
        )
    return (
        f"SD_DEVICE is {settings.device}, SD_DTYPE {settings.dtype}. To draw on the processor:\n"
        f"  export SD_DEVICE=cpu SD_DTYPE=auto"
    )


def _load(settings: Settings, found: Found, phases: Phases) -> Service:
    checkpoint = found.checkpoint
    if checkpoint.suffix == ".ckpt":
        from builder.convert import ensure_converted  # most starts have nothing to convert

        log.log.info(f"converting {checkpoint}, once for every worker that shares this directory")
        checkpoint = ensure_converted(checkpoint, checkpoint.with_suffix(".safetensors"))
        phases.end("convert")
    model = StableDiffusion.load(checkpoint, found.directory, settings.device, settings.dtype)
    phases.end("load")
    engine = Engine(model, settings.max_batch, settings.max_jobs, _packages(model, found.directory), _end_process)
    # The interpreter must not be torn down under the drawing thread.
    atexit.register(engine.close)
    engine.warm_up()
    encode(np.zeros((8, 8, 3), np.uint8), "png", "")  # Pillow finds its writers at the first picture
    phases.end("warm_up")
    identity = ModelIdentity(model.info.name, model.info.sha256, checkpoint)
    identity.hash_in_background()
    about = {
        "model": str(checkpoint),
        "device": model.info.device,
        "dtype": model.info.dtype,
        "start_ms": phases.milliseconds(),
    }
    log.log.info("ready", extra={"fields": about})
    limits = Limits(settings.max_pixels, {model.info.name: model.info.native_size})
    return Service(settings, engine, {model.info.name: identity}, limits)


def _end_process(error: Exception) -> None:
    """After the engine's failure: as the platform's own signal does, so that the jobs in flight are still answered."""
    log.log.critical("the engine has failed, so this worker ends", exc_info=error)
    os.kill(os.getpid(), signal.SIGTERM)


def _packages(model: StableDiffusion, directory: Path) -> dict[Bucket, Step]:
    """The compiled forwards that `python -m builder compile` made for this GPU, if it did."""
    if model.device.type != "cuda" or not (directory / COMPILED).is_dir():
        return {}
    from sd_core.engine.aot import folder_of, load_packages  # no other start needs them

    folder = folder_of(directory, model.networks.unet, model.device)
    packages = load_packages(folder, model.networks.unet)
    log.log.info(f"{len(packages)} compiled forwards of the UNet from {folder}")
    return packages


def find(settings: Settings) -> Found:
    """The checkpoint that `settings` mean, with its tokenizer beside it. Raises `StartupError`."""
    if settings.weights is None:
        checkpoint = _search(settings, settings.search)
    elif settings.weights.is_dir():
        checkpoint = _search(settings, (settings.weights,))
    else:
        checkpoint = _named_file(settings, settings.weights)
    missing = [name for name in TOKENIZER_FILES if not (checkpoint.parent / name).is_file()]
    if missing:
        raise StartupError(
            f"The tokenizer's {' and '.join(missing)} must lie beside {checkpoint}.\n"
            f"{_contents(checkpoint.parent)}\n"
            f"For Stable Diffusion v1.x:\n"
            f"  hf download {TOKENIZER_SOURCE} {' '.join(TOKENIZER_FILES)} "
            f"--local-dir {checkpoint.parent}"
        )
    return Found(checkpoint)


def _search(settings: Settings, directories: tuple[Path, ...]) -> Path:
    for directory in directories:
        if directory.is_dir() and (checkpoint := _in_directory(directory, settings.checkpoint)):
            return checkpoint
    raise StartupError(_nothing_found(settings, directories))


def _named_file(settings: Settings, file: Path) -> Path:
    if not file.is_file():
        raise StartupError(_nothing_found(settings, (file,)))
    if file.suffix not in SUFFIXES:
        raise StartupError(f"SD_WEIGHTS={file} is neither a .safetensors nor a .ckpt file.\n{_contents(file.parent)}")
    if settings.checkpoint not in (None, file.name):
        raise StartupError(
            f"SD_WEIGHTS={file} names a file and SD_CHECKPOINT={settings.checkpoint} another one.\n"
            f"Unset SD_CHECKPOINT, or set SD_WEIGHTS={file.parent}"
        )
    return file


def _in_directory(directory: Path, name: str | None) -> Path | None:
    """The named checkpoint, else the usual one, else the only one; None where none is."""
    if name is not None:
        if Path(name).suffix not in SUFFIXES:
            raise StartupError(f"SD_CHECKPOINT={name} is neither a .safetensors nor a .ckpt file.")
        return directory / name if (directory / name).is_file() else None
    by_name: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(directory.glob(f"*{suffix}")):
            if path.is_file() and not path.name.startswith("."):
                by_name.setdefault(path.stem, path)  # what was converted stands for what it was converted from
    if USUAL_NAME in by_name:
        return by_name[USUAL_NAME]
    there = list(by_name.values())
    if len(there) > 1:
        raise StartupError(
            f"{directory} holds {len(there)} checkpoints and none is named {USUAL_NAME}:\n"
            + "\n".join(f"  {path.name}" for path in there[:MOST_LISTED])
            + f"\nName one of them:\n  export SD_CHECKPOINT={there[0].name}"
        )
    return there[0] if there else None


def _nothing_found(settings: Settings, looked: tuple[Path, ...]) -> str:
    wanted = settings.checkpoint or f"{USUAL_NAME}.safetensors (or .ckpt, or any other single checkpoint)"
    source = "SD_WEIGHTS" if settings.weights is not None else "the default places; SD_WEIGHTS is not set"
    target = looked[0].parent if looked[0].suffix in SUFFIXES else looked[0]
    return (
        f"No model: looked for {wanted} in {source}.\n"
        + "\n".join(_contents(path) for path in looked)
        + ("\nOn RunPod the demo model never stands in." if settings.on_runpod else "")
        + "\nTo put Stable Diffusion v1.5 there:\n"
        f"  hf download {V15_SOURCE} {USUAL_NAME}.safetensors --local-dir {target}\n"
        f"  hf download {TOKENIZER_SOURCE} {' '.join(TOKENIZER_FILES)} --local-dir {target}"
    )


def _contents(path: Path) -> str:
    """One line: what lies at `path`."""
    if not path.exists():
        return f"  {path}: does not exist"
    if path.is_file():
        return f"  {path}: a file"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"  {path}: " + (", ".join(names[:MOST_LISTED]) + more if names else "is empty")


def _check_gpu(settings: Settings) -> None:
    """Else an image whose CUDA the machine's driver is too old for would draw on its processor, at a GPU's price."""
    if settings.device != "auto" or torch.cuda.is_available() or not any(_DEVICES.glob("nvidia[0-9]*")):
        return
    cuda = torch.version.cuda
    reason = "is a build without CUDA" if cuda is None else f"needs a driver for CUDA {cuda}, and this one is older"
    message = (
        f"This machine has an NVIDIA GPU that torch {torch.__version__} cannot use: most likely it {reason}.\n"
        "On RunPod, let the endpoint choose only machines of that CUDA version or later.\n"
        "To draw on the processor:\n  export SD_DEVICE=cpu"
    )
    if settings.on_runpod:
        raise StartupError(message)
    log.log.warning(message)


def _check_outputs(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"The outputs directory {directory} cannot be made: {error.strerror}.\n"
            f"Name one that can be written to:\n  export SD_OUTPUTS=/path/to/outputs"
        ) from error
