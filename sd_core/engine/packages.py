"""Compiled forwards of the UNet (AOTInductor): made once for a kind of GPU, kept beside the checkpoint.

A package holds kernels and no weights: it is handed those that are loaded, so every checkpoint of one architecture
shares it. It runs native code: whoever may write to that directory may run code in the worker.
"""

import hashlib
import inspect
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sd_core.engine.graphs import COMPILED, Bucket, Step
from sd_core.models import attention, layers, unet
from sd_core.models.unet import UNet, UNetStep

_NAME = re.compile(r"unet-p(\d+)-r(\d+)-(\d+)x(\d+)-t(\d+)\.pt2")

log = logging.getLogger(__name__)


def folder_of(directory: Path, network: UNet, device: torch.device) -> Path:
    """Where the packages for this network lie: what differs in device, torch, dtype, widths or code has its own."""
    parts = (device_name(device), f"torch{torch.__version__}", str(network.dtype).removeprefix("torch."))
    sources = "".join(inspect.getsource(module) for module in (attention, layers, unet))
    digest = hashlib.sha256(f"{network.config} {sources}".encode()).hexdigest()[:12]
    return directory / COMPILED / "-".join((*parts, digest))


def device_name(device: torch.device) -> str:
    """The kind of device that kernels are made for: sm90 of an H100 or H200, else the processor's."""
    if device.type == "cuda":
        return "sm{}{}".format(*torch.cuda.get_device_capability(device))
    return platform.machine()


def name_of(bucket: Bucket) -> str:
    return f"unet-p{bucket.pictures}-r{bucket.rows}-{bucket.height}x{bucket.width}-t{bucket.tokens}.pt2"


def compile_package(network: UNet, bucket: Bucket, package: Path, options: Mapping[str, object]) -> None:
    """Writes the bucket's package. `options` are TorchInductor's, beyond those that keep weights out of it."""
    step = UNetStep(network)
    exported = torch.export.export(step, example(network, bucket))
    torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(package),
        inductor_configs={
            "aot_inductor.package_constants_in_so": False,
            "always_keep_tensor_constants": True,  # else those of a few numbers become part of the code
            **options,
        },
    )


def example(network: UNet, bucket: Bucket) -> tuple[Tensor, ...]:
    """Inputs of a bucket's shapes, as `UNetStep` takes them."""
    weight = next(network.parameters())
    latents = weight.new_zeros(
        bucket.pictures, network.config.in_channels, bucket.height, bucket.width, dtype=torch.float32
    )
    timesteps = latents.new_zeros(bucket.pictures)
    rows = torch.arange(bucket.rows, device=weight.device) % bucket.pictures
    read = network.read(weight.new_zeros(bucket.rows, bucket.tokens, network.config.context_dim)).read
    return latents, timesteps, rows, *(each for keys_values in read for each in keys_values)


def load_packages(folder: Path, network: UNet) -> dict[Bucket, Step]:
    """Every package of the folder, working on the network's own weights; a broken one is said and left out."""
    if not folder.is_dir():
        return {}
    weights = dict(UNetStep(network).named_parameters())
    packages: dict[Bucket, Step] = {}
    for path in sorted(folder.iterdir()):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        try:
            # One thread draws; the locks for several would be in the way of CUDA graphs.
            package = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
            constants: dict[str, Tensor] = {name: weights[name] for name in package.get_constant_fqns()}
            package.load_constants(constants, check_full_update=True, user_managed=True)
        except (RuntimeError, KeyError, OSError) as error:
            log.warning("%s cannot be used, the UNet runs without it: %s", path, error)
            continue
        packages[Bucket(*map(int, match.groups()))] = package
    return packages


def buckets_of(rows: Sequence[int], side: int, tokens: int) -> list[Bucket]:
    """For so many rows: of pictures with guidance, two rows each, and of pictures without."""
    guided = [Bucket(count // 2, count, side, side, tokens) for count in rows if count % 2 == 0]
    return sorted(
        [*guided, *(Bucket(count, count, side, side, tokens) for count in rows)], key=lambda bucket: bucket.rows
    )
