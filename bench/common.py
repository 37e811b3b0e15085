"""What all measurements share: the models, alternating timing, and the printed JSON."""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sd_core.device import DTYPES, choose_device, choose_dtype
from sd_core.engine.aot import folder_of, load_packages
from sd_core.engine.graphs import Bucket, Step
from sd_core.formats.detect import Architecture
from sd_core.pipeline.model import StableDiffusion
from tests.support.random_weights import FULL, TINY, write_checkpoint
from tests.support.tokenizer_files import clip_merges, write_tokenizer
from worker.settings import BUNDLED_WEIGHTS

LATENT_SIDE = 8  # pixels on the side of a latent
PACKAGES = ("torch", "diffusers", "transformers", "runpod")


@dataclass(frozen=True)
class Options:
    """The options of the command line. `cache` is the folder that keeps the random models between measurements."""

    tiny: bool
    device: torch.device
    dtype: str
    rounds: int
    cache: Path

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class RandomModel:
    """A random fp16 checkpoint with its tokenizer, in a directory that SD_WEIGHTS can name."""

    directory: Path
    architecture: Architecture

    @property
    def checkpoint(self) -> Path:
        return self.directory / "random.safetensors"

    def load(self, options: Options) -> StableDiffusion:
        return StableDiffusion.load(self.checkpoint, self.directory, str(options.device), options.dtype)

    def weights(
        self, prefix: str = "", device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix: views of the file, unless dtype or device differ."""
        with safe_open(self.checkpoint, framework="pt", device="cpu") as file:
            return {
                name: file.get_tensor(name).to(device=device, dtype=dtype)
                for name in file.keys()  # noqa: SIM118 - not a dict
                if name.startswith(prefix)
            }


def command_line(description: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options of every measurement; a script may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--tiny", action="store_true", help="use a tiny model, to check that the script works; the numbers mean nothing"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, fp16 or bf16")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each side is timed")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "sd15-worker-bench",
        help="folder that keeps the random models",
    )
    return parser


def full_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--full", action="store_true", help="use the random model of v1.5's size instead of the demo model"
    )


def job_command_line(description: str, rounds: int, steps: int) -> argparse.ArgumentParser:
    """The parser of a measurement whose jobs have so many steps, of the demo model or with `--full`."""
    parser = command_line(description, rounds)
    full_option(parser)
    parser.add_argument("--steps", type=int, default=steps)
    return parser


def step_command_line(description: str, rounds: int) -> argparse.ArgumentParser:
    """The parser of a measurement of single UNet calls."""
    parser = command_line(description, rounds)
    parser.add_argument("--size", type=int, default=512, help="pixels on a side")
    return parser


def options_of(arguments: argparse.Namespace) -> Options:
    device = choose_device(arguments.device)
    return Options(arguments.tiny, device, choose_dtype(arguments.dtype, device), arguments.rounds, arguments.cache)


def parse(description: str, argv: Sequence[str] | None, rounds: int) -> Options:
    return options_of(command_line(description, rounds).parse_args(argv))


def random_model(options: Options) -> RandomModel:
    """The random model of v1.5's size, or a tiny one, written at its first use."""
    model = RandomModel(options.cache / ("tiny" if options.tiny else "full"), TINY if options.tiny else FULL)
    if not model.checkpoint.exists():
        write_tokenizer(model.directory, [] if options.tiny else clip_merges())
        half_written = model.checkpoint.with_suffix(".part")
        write_checkpoint(half_written, model.architecture)
        half_written.rename(model.checkpoint)
    return model


def step_inputs(options: Options, pixels: int, context_dim: int) -> tuple[Tensor, Tensor]:
    """Latents (1, 4, h, w) of an image with so many pixels on a side, and hidden states (2, 77, D) of two prompts."""
    side = 8 if options.tiny else pixels // LATENT_SIDE
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, side, side, generator=generator)
    states = torch.randn(2, 77, context_dim, generator=generator)
    return latents.to(options.device), states.to(options.device, options.torch_dtype)


def served_checkpoint(options: Options, full: bool) -> tuple[Path, str]:
    """The checkpoint of the demo model or of the random model, and its name in a report."""
    if full or options.tiny:
        return random_model(options).checkpoint, "tiny" if options.tiny else "v1.5"
    return BUNDLED_WEIGHTS / "demo.safetensors", "demo"


def served_model(options: Options, full: bool) -> tuple[StableDiffusion, dict[str, dict[Bucket, Step]], str]:
    """The model of `served_checkpoint`, its compiled forwards by model name, and its name in a report."""
    checkpoint, name = served_checkpoint(options, full)
    model = StableDiffusion.load(checkpoint, checkpoint.parent, str(options.device), options.dtype)
    unet = model.networks.unet
    packages = load_packages(folder_of(checkpoint.parent, unet, options.device), unet)
    return model, {model.info.name: packages}, name


def worker_environment(weights: Path, options: Options) -> dict[str, str]:
    """The environment variables of a worker with this device and dtype."""
    return {
        "SD_WEIGHTS": str(weights),
        "SD_OUTPUTS": str(options.cache / "outputs"),
        "SD_DEVICE": str(options.device),
        "SD_DTYPE": options.dtype,
    }


def time_in_turn(
    sides: Mapping[str, Callable[[], object]], options: Options, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every round of every side. The sides alternate, so that other load on the machine affects all."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(-warm_up, options.rounds):
        for name, side in sides.items():
            _synchronize(options.device)
            started = time.perf_counter()
            side()
            _synchronize(options.device)
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(
    name: str,
    options: Options,
    ours: Callable[[], Tensor],
    reference: str,
    theirs: Callable[[], Tensor],
    warm_up: int = 2,
    **about: Any,
) -> dict[str, Any]:
    """Time our side and the reference's alternately; report both, their ratio, and the difference of their outputs."""
    seconds = time_in_turn({"ours": ours, reference: theirs}, options, warm_up)
    return report(
        name,
        options,
        **about,
        ours_s=summary(seconds["ours"], digits=5),
        **{f"{reference}_s": summary(seconds[reference], digits=5)},
        ratio=ratio(seconds["ours"], seconds[reference]),
        difference=relative_difference(ours(), theirs()),
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value, to show that both sides computed the same thing."""
    return ((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max()).item()


def rms_difference(ours: Tensor, theirs: Tensor) -> float:
    """The root mean square of the difference, over that of `theirs`."""
    difference, scale = (ours.float() - theirs.float()).square().mean(), theirs.float().square().mean()
    return (difference / scale).sqrt().item()


def summary(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in spread.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The ratio of the medians; below 1, ours is smaller."""
    return round(statistics.median(ours) / statistics.median(theirs), 3)


def report(name: str, options: Options, **results: Any) -> dict[str, Any]:
    """Print the measurement as JSON, with a description of the machine, and return it."""
    measurement = {
        "bench": name,
        "model": "tiny" if options.tiny else "v1.5",
        "device": str(options.device),
        "dtype": options.dtype,
        "rounds": options.rounds,
        **results,
        "machine": machine(options.device),
    }
    json.dump(measurement, sys.stdout, indent=2)
    print()
    return measurement


def machine(device: torch.device) -> dict[str, Any]:
    described: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
