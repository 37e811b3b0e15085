"""Checks before a model is loaded: the GPU can be used, and images can be stored."""

from pathlib import Path

import torch

from worker.log import log
from worker.settings import Settings, StartupError


def check_outputs(directory: Path) -> None:
    """Make the directory for pictures. Raises `StartupError` with the remedy."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"The outputs directory {directory} cannot be made: {error.strerror}.\n"
            f"Name one that can be written to:\n  export SD_OUTPUTS=/path/to/outputs"
        ) from error


def check_gpu(settings: Settings, devices: Path = Path("/dev")) -> None:
    """Raise `StartupError` on RunPod, and warn elsewhere, if there is an NVIDIA GPU that torch cannot use.

    Otherwise an image whose CUDA is too new for the machine's driver would run on its processor, at a GPU's price.
    """
    if settings.device != "auto" or torch.cuda.is_available() or not any(devices.glob("nvidia[0-9]*")):
        return
    cuda = torch.version.cuda
    reason = "is a build without CUDA" if cuda is None else f"needs a driver for CUDA {cuda}, and this one is older"
    message = (
        f"This machine has an NVIDIA GPU that torch {torch.__version__} cannot use: most likely it {reason}.\n"
        "On RunPod, let the endpoint choose only machines of that CUDA version or later.\n"
        "To run on the processor:\n  export SD_DEVICE=cpu"
    )
    if settings.on_runpod:
        raise StartupError(message)
    log.warning(message)
