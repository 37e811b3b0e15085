"""Checkpoint -> compiled forwards of its UNet for this machine's GPU, stored beside it on the volume."""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from sd_core.device import DTYPES, choose_device, choose_dtype
from sd_core.engine.aot import buckets_of, compile_package, folder_of, name_of
from sd_core.engine.graphs import BUCKETS
from sd_core.errors import ModelError
from sd_core.formats.load import load_networks

# Kernels are chosen by measurement here, so that no worker spends time on it.
TUNED: Mapping[str, object] = {"max_autotune": True, "coordinate_descent_tuning": True}


def compile_checkpoint(
    checkpoint: Path,
    rows: Sequence[int],
    device: str = "cuda",
    dtype: str = "auto",
    options: Mapping[str, object] = TUNED,
) -> Iterator[Path]:
    """Compile the UNet of a `.safetensors` for forwards of these row counts at its native size.

    Yields the path of each package. Existing packages are kept; new ones appear complete or not at all. Raises
    `ModelError` if the checkpoint or a row count cannot be used or the compiler fails, `DeviceError` for a device
    that is not available.
    """
    if unknown := sorted(set(rows) - set(BUCKETS)):
        raise ModelError(f"forwards have {', '.join(map(str, BUCKETS))} rows, none has {unknown[0]}")
    chosen = choose_device(device)
    networks = load_networks(checkpoint, chosen, DTYPES[choose_dtype(dtype, chosen)])
    network, architecture = networks.unet, networks.architecture
    side = architecture.native_size // networks.vae.downscale
    folder = folder_of(checkpoint.parent, network, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    for bucket in buckets_of(sorted(set(rows)), side, architecture.text.max_length):
        package = folder / name_of(bucket)
        if not package.exists():
            temporary = folder / f".{uuid.uuid4().hex}.pt2"
            try:
                with torch.no_grad():
                    compile_package(network, bucket, temporary, options)
                temporary.replace(package)
            except RuntimeError as error:
                raise ModelError(f"{package.name} could not be compiled: {error}") from error
            finally:
                temporary.unlink(missing_ok=True)
        yield package
