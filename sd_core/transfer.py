"""Between host and device without making either wait."""

import torch
from torch import Tensor


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
