"""Compiled forwards of the UNet (AOTInductor): made once per kind of GPU, stored beside the checkpoint.

A package contains kernels and no weights: it uses the loaded ones, so all checkpoints of one architecture share it. It
is native code: whoever can write to that directory can run code in the worker.
"""

import hashlib
import logging
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_core.engine.graphs import Bucket, Step, example
from sd_core.models.unet import UNet
from sd_core.models.unet_step import UNetStep

# Part of every package's folder. Increase it if a forward of the UNet computes something else or takes other inputs.
VERSION = 1

# The folder of packages, in the directory of the checkpoint.
COMPILED = "compiled"

# For the code that launches kernels. By default the compiler would use all instructions of the processor it runs on.
ANY_X86: Mapping[str, object] = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}

_NAME = re.compile(r"unet-p(\d+)-r(\d+)-(\d+)x(\d+)-t(\d+)\.pt2")

log = logging.getLogger(__name__)


def folder_of(directory: Path, network: UNet, device: torch.device) -> Path:
    """The folder of this network's packages: one per kind of device, torch, dtype, version and architecture."""
    dtype = str(network.dtype).removeprefix("torch.")
    digest = hashlib.sha256(str(network.config).encode()).hexdigest()[:12]
    return directory / COMPILED / f"{device_name(device)}-torch{torch.__version__}-{dtype}-v{VERSION}-{digest}"


def device_name(device: torch.device) -> str:
    """The kind of device that kernels are made for: sm90 for an H100 or H200; without a GPU, the processor's."""
    if device.type == "cuda":
        return "sm{}{}".format(*torch.cuda.get_device_capability(device))
    return platform.machine()


def name_of(bucket: Bucket) -> str:
    return f"unet-p{bucket.pictures}-r{bucket.rows}-{bucket.height}x{bucket.width}-t{bucket.tokens}.pt2"


def compile_package(network: UNet, bucket: Bucket, package: Path, options: Mapping[str, object]) -> None:
    """Write the bucket's package; changes the network's memory format.

    `options` are TorchInductor's, added to those that keep weights out of the package and let it run on any x86
    processor.
    """
    exported = torch.export.export(UNetStep(_laid_out(network)), flat_example(network, bucket))
    torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(package),
        inductor_configs={
            "aot_inductor.package_constants_in_so": False,
            "always_keep_tensor_constants": True,  # otherwise small ones become part of the code
            **(ANY_X86 if platform.machine() == "x86_64" else {}),
            **options,
        },
    )


def flat_example(network: UNet, bucket: Bucket) -> tuple[Tensor, ...]:
    """Inputs of a bucket's shapes, as `UNetStep` takes them."""
    latents, timesteps, given = example(network, bucket)
    assert given.image_of_row is not None
    return latents, timesteps, given.image_of_row, *UNetStep(network).flatten(given)


def _laid_out(network: UNet) -> UNet:
    """Make the kernels channels_last, in place; compiled convolutions would convert others at every step.

    A package assumes the strides that the weights had when it was compiled.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return network


def load_packages(folder: Path, network: UNet) -> dict[Bucket, Step]:
    """Every package of the folder, using the network's own weights; broken packages are logged and skipped."""
    if not folder.is_dir():
        return {}
    weights = dict(UNetStep(_laid_out(network)).named_parameters())
    packages: dict[Bucket, Step] = {}
    for path in sorted(folder.iterdir()):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        try:
            packages[Bucket(*map(int, match.groups()))] = _load(path, weights)
        except (RuntimeError, KeyError, OSError) as error:
            log.warning("skipping the compiled package %s: %s", path, error)
    return packages


def _load(path: Path, weights: Mapping[str, Tensor]) -> Step:
    """Load a package for these weights. torch's loader is used directly: its wrapper would import the compiler."""
    # One instance, for the engine thread: the locks of several cannot be captured in CUDA graphs.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)  # noqa: FBT003 - it has no names
    constants = {name: weights[name] for name in loader.get_constant_fqns()}
    loader.load_constants(constants, use_inactive=False, check_full_update=True, user_managed=True)

    def step(*inputs: Tensor) -> Tensor:
        (output,) = loader.boxed_run(list(inputs))
        return output

    return step


def buckets_of(rows: Sequence[int], side: int, tokens: int) -> list[Bucket]:
    """The buckets of these numbers of rows: of images with guidance, two rows each, and of images without."""
    guided = [Bucket(count // 2, count, side, side, tokens) for count in rows if count % 2 == 0]
    return sorted(
        [*guided, *(Bucket(count, count, side, side, tokens) for count in rows)], key=lambda bucket: bucket.rows
    )
