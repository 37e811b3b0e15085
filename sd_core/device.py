"""The device that networks run on: which one, in which dtype, and transfers that make neither side wait."""

import torch
from torch import Tensor

from sd_core.errors import DeviceError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`. To a GPU it goes through pinned memory, queued behind the work that is there."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Download:
    """A tensor on its way to the host: the copy is queued when this is made, `wait` returns what has arrived."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = tensor.cpu()

    def wait(self) -> Tensor:
        """The tensor on the host; blocks the calling thread until it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def choose_device(name: str) -> torch.device:
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if name not in available:
        raise DeviceError(f"device {name!r} is not known; known: auto, {', '.join(available)}")
    if not available[name]:
        raise DeviceError(f"device {name!r} is not available to torch {torch.__version__} on this machine")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> str:
    if name == "auto":
        return "fp32" if device.type == "cpu" else "fp16"
    if name not in DTYPES:
        raise DeviceError(f"dtype {name!r} is not known; known: auto, {', '.join(DTYPES)}")
    return name
