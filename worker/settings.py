"""The environment, read once into frozen `Settings`. The only module that reads `os.environ`."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sd_core.catalogue import Kind

VOLUME = Path("/runpod-volume")
WORKSPACE = Path("/workspace")
BUNDLED_WEIGHTS = Path(__file__).resolve().parent.parent / "demo" / "weights"

DEVICES = ("auto", "cuda", "cpu", "mps")
DTYPES = ("auto", "fp32", "fp16", "bf16")
LOG_LEVELS = {
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARN": "WARNING",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "CRITICAL",
}
SWITCH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("", "0", "false", "no", "off"), False),
}

FOLDER_VARIABLES: Mapping[Kind, str] = {
    Kind.LORA: "SD_LORAS",
    Kind.EMBEDDING: "SD_EMBEDDINGS",
    Kind.CONTROLNET: "SD_CONTROLNETS",
    Kind.VAE: "SD_VAES",
    Kind.UPSCALER: "SD_UPSCALERS",
    Kind.IP_ADAPTER: "SD_IP_ADAPTERS",
    Kind.CLIP_VISION: "SD_CLIP_VISION",
}

DEFAULT_MAX_BATCH = 8
DEFAULT_MAX_CONCURRENCY = 8  # as many as share a forward
DEFAULT_MAX_JOBS = 64
DEFAULT_MAX_PIXELS = 2048 * 2048  # one image of the largest size, or sixteen of 512x512
MIN_PICTURE_PIXELS = 64 * 64
UNITS = {10**6: "megabytes", 10**9: "gigabytes"}


class StartupError(Exception):
    """The worker cannot start. The text is the complete message for the operator."""


class SettingsError(StartupError):
    """Environment variables have unusable values; the text names each of them."""


@dataclass(frozen=True)
class Settings:
    """What the operator chose.

    If `weights` is None, the directories of `search` are searched in order. `checkpoints` are file names, the default
    model first; empty means the usual one. `folders` are those that are set for the files that jobs may name; `volumes`
    may hold others. `has_queue` is whether the SDK gets its jobs from the platform. Models that stay loaded take
    `models_bytes` together at most; None means what is free.
    """

    weights: Path | None
    search: tuple[Path, ...]
    checkpoints: tuple[str, ...]
    outputs: Path
    on_runpod: bool
    has_queue: bool = False
    device: str = "auto"
    dtype: str = "auto"
    max_batch: int = DEFAULT_MAX_BATCH
    max_concurrency: int = DEFAULT_MAX_CONCURRENCY
    max_jobs: int = DEFAULT_MAX_JOBS
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_response_bytes: int = 10_000_000
    models_bytes: int | None = None
    log_level: str = "INFO"
    port: int = 8000
    allow_private_urls: bool = False
    folders: Mapping[Kind, tuple[Path, ...]] = field(default_factory=dict)
    volumes: tuple[Path, ...] = ()


def is_runpod(environ: Mapping[str, str]) -> bool:
    """Whether this is a worker or a pod: workers have `RUNPOD_WEBHOOK_*` and `RUNPOD_ENDPOINT_ID`, both have
    `RUNPOD_POD_ID`.
    """
    names = {name for name, value in environ.items() if value}
    return not names.isdisjoint({"RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID"}) or any(
        name.startswith("RUNPOD_WEBHOOK_") for name in names
    )


def read_settings(
    environ: Mapping[str, str] | None = None,
    volume: Path = VOLUME,
    workspace: Path = WORKSPACE,
    bundled: Path = BUNDLED_WEIGHTS,
) -> Settings:
    """Read `environ` (by default the process's own). An empty value means the same as none.

    Raises `SettingsError`, whose text has one line for each bad variable.
    """
    reader = _Reader(os.environ if environ is None else environ)
    on_runpod = is_runpod(reader.environ)
    weights = reader.text("SD_WEIGHTS")
    outputs = reader.text("SD_OUTPUTS")
    debug = reader.switch("SD_DEBUG") | reader.switch("FLASK_DEBUG")
    level = reader.choice("LOG_LEVEL", "INFO", tuple(LOG_LEVELS), str.upper)
    max_concurrency = reader.integer("SD_MAX_CONCURRENCY", DEFAULT_MAX_CONCURRENCY, 1, 1024)
    settings = Settings(
        weights=Path(weights).expanduser() if weights else None,
        search=(volume / "weights", workspace / "weights", *(() if on_runpod else (bundled,))),
        checkpoints=reader.file_names("SD_CHECKPOINT"),
        outputs=Path(outputs).expanduser().absolute() if outputs else _default_outputs(volume),
        on_runpod=on_runpod,
        # The two variables by which the SDK decides; without them it runs one test job.
        has_queue=any(reader.text(name) for name in ("RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_REALTIME_PORT")),
        device=reader.choice("SD_DEVICE", "auto", DEVICES, str.lower),
        dtype=reader.choice("SD_DTYPE", "auto", DTYPES, str.lower),
        max_batch=reader.integer("SD_MAX_BATCH", DEFAULT_MAX_BATCH, 1, 1024),
        max_concurrency=max_concurrency,
        # With fewer, the worker would take jobs from the platform only to refuse them.
        max_jobs=reader.integer("SD_MAX_JOBS", max(DEFAULT_MAX_JOBS, max_concurrency), max_concurrency, 2**20),
        max_pixels=reader.integer("SD_MAX_PIXELS", DEFAULT_MAX_PIXELS, MIN_PICTURE_PIXELS, 2**40),
        max_response_bytes=reader.bytes("SD_MAX_RESPONSE_MB", 10.0, 10**6),
        models_bytes=reader.bytes("SD_MODELS_GB", 0.0, 10**9) or None,
        log_level="DEBUG" if debug else LOG_LEVELS[level],
        port=reader.integer("PORT", 8000, 0, 65535),
        allow_private_urls=reader.switch("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS"),
        folders={kind: folders for kind, name in FOLDER_VARIABLES.items() if (folders := reader.directories(name))},
        volumes=(volume, workspace),
    )
    if reader.problems:
        raise SettingsError("\n".join(["These environment variables have unusable values:", *reader.problems]))
    return settings


def _default_outputs(volume: Path) -> Path:
    return volume / "outputs" if volume.is_dir() else Path("outputs").absolute()


class _Reader:
    """Reads one variable at a time and collects the problems, so that all of them are reported at once."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        return self.environ.get(name, "").strip()

    def file_names(self, name: str) -> tuple[str, ...]:
        values = tuple(value.strip() for value in self.text(name).split(":") if value.strip())
        if any(Path(value).name != value or value == ".." for value in values):
            self._bad(name, "is not a plain file name, or several with : between; the directory belongs in SD_WEIGHTS")
        return values

    def directories(self, name: str) -> tuple[Path, ...]:
        return tuple(Path(value.strip()).expanduser() for value in self.text(name).split(":") if value.strip())

    def choice(self, name: str, default: str, known: tuple[str, ...], fold: Callable[[str], str]) -> str:
        value = fold(self.text(name)) or default
        if value in known:
            return value
        self._bad(name, f"is not one of {', '.join(known)}")
        return default

    def switch(self, name: str) -> bool:
        value = SWITCH.get(self.text(name).lower())
        if value is None:
            self._bad(name, "is neither 1 nor 0")
        return bool(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name)
        if not value:
            return default
        # At most 18 digits: Python refuses to convert strings of thousands.
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= 18 else -1
        if not low <= number <= high:
            self._bad(name, f"is not a whole number from {low:,} to {high:,}")
            return default
        return number

    def bytes(self, name: str, default: float, unit: int) -> int:
        """A size in megabytes or gigabytes, fractions allowed."""
        value = self.text(name)
        try:
            number = float(value) if value else default
        except ValueError:
            number = math.nan
        if value and not 0.001 <= number <= 1000:
            self._bad(name, f"is not a number of {UNITS[unit]} from 0.001 to 1000")
            number = default
        return int(number * unit)

    def _bad(self, name: str, reason: str) -> None:
        self.problems.append(f"  {name}={self.environ[name][:80]!r} {reason}")
