"""Compiled forwards of the UNet (AOTInductor): made once for a kind of GPU, kept beside the checkpoint.

A package holds kernels and no weights: it is handed those that are loaded, so every checkpoint of one architecture
shares it. It runs native code: whoever may write to that directory may run code in the worker.
"""

import hashlib
import inspect
import logging
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_core.engine.graphs import COMPILED, Bucket, Step, example
from sd_core.models import attention, layers, unet
from sd_core.models.unet import UNet, UNetStep

ANY_X86: Mapping[str, object] = {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
"""Of the code that launches kernels: the compiler would take all that the processor it runs on has."""

_NAME = re.compile(r"unet-p(\d+)-r(\d+)-(\d+)x(\d+)-t(\d+)\.pt2")

log = logging.getLogger(__name__)


def folder_of(directory: Path, network: UNet, device: torch.device) -> Path:
    """Where the packages for this network lie: what differs in device, torch, dtype, widths or code has its own."""
    parts = (device_name(device), f"torch{torch.__version__}", str(network.dtype).removeprefix("torch."))
    sources = "".join(map(inspect.getsource, (attention, layers, unet, sys.modules[__name__])))
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
    """Writes the bucket's package, laying out the network for it. `options` are TorchInductor's, beyond those that
    keep weights out of it, and the builder's own processor out of what runs beside the GPU."""
    exported = torch.export.export(UNetStep(_laid_out(network)), flat_example(network, bucket))
    torch._inductor.aoti_compile_and_package(
        exported,
        package_path=str(package),
        inductor_configs={
            "aot_inductor.package_constants_in_so": False,
            "always_keep_tensor_constants": True,  # else those of a few numbers become part of the code
            **(ANY_X86 if platform.machine() == "x86_64" else {}),
            **options,
        },
    )


def flat_example(network: UNet, bucket: Bucket) -> tuple[Tensor, ...]:
    """Inputs of a bucket's shapes, as `UNetStep` takes them."""
    latents, timesteps, contexts = example(network, bucket)
    assert contexts.rows is not None
    return latents, timesteps, contexts.rows, *(each for keys_values in contexts.read for each in keys_values)


def _laid_out(network: UNet) -> UNet:
    """Its kernels channels_last, in place: compiled convolutions read them so, and would turn others at every step.

    A package believes that weights have the strides that they had when it was compiled.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return network


def load_packages(folder: Path, network: UNet) -> dict[Bucket, Step]:
    """Every package of the folder, working on the network's own weights; a broken one is said and left out."""
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
            log.warning("%s cannot be used, the UNet runs without it: %s", path, error)
    return packages


def _load(path: Path, weights: Mapping[str, Tensor]) -> Step:
    """The package on these weights, by torch's loader itself: the function around it brings the compiler with it."""
    # One copy, for one thread, which draws: the locks for several would be in the way of CUDA graphs.
    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)  # noqa: FBT003 - it has no names
    constants = {name: weights[name] for name in loader.get_constant_fqns()}
    loader.load_constants(constants, use_inactive=False, check_full_update=True, user_managed=True)

    def step(*inputs: Tensor) -> Tensor:
        (eps,) = loader.boxed_run(list(inputs))
        return eps

    return step


def buckets_of(rows: Sequence[int], side: int, tokens: int) -> list[Bucket]:
    """For so many rows: of pictures with guidance, two rows each, and of pictures without."""
    guided = [Bucket(count // 2, count, side, side, tokens) for count in rows if count % 2 == 0]
    return sorted(
        [*guided, *(Bucket(count, count, side, side, tokens) for count in rows)], key=lambda bucket: bucket.rows
    )
