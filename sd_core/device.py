"""The device that networks run on: which one, in which dtype, and asynchronous transfers to and from it."""

import torch
from torch import Tensor

from sd_core.errors import DeviceError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`. To a GPU it is copied from pinned memory, queued behind the GPU's work."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Download:
    """A tensor on its way to the host. The constructor queues the copy, `wait` returns it."""

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
        """The tensor on the host; blocks the calling thread until the copy is complete."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is the best one available. Raises `DeviceError`."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_available in available.items() if is_available)
    if name not in available:
        raise DeviceError(f"device {name!r} is not known; known: auto, {', '.join(available)}")
    if not available[name]:
        raise DeviceError(f"device {name!r} is not available to torch {torch.__version__} on this machine")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> str:
    """The name of a dtype; `auto` is fp32 on a CPU and fp16 elsewhere. Raises `DeviceError`."""
    if name == "auto":
        return "fp32" if device.type == "cpu" else "fp16"
    if name not in DTYPES:
        raise DeviceError(f"dtype {name!r} is not known; known: auto, {', '.join(DTYPES)}")
    return name
