"""How far the engine thread runs ahead of a GPU."""

from collections import deque

import torch

# Forwards queued on a GPU at most: enough to keep it busy, few enough to join and to cancel promptly.
TICKS_AHEAD = 2


class QueueAhead:
    """Bounds the forwards that are queued on a device and not yet done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._queued: deque[torch.cuda.Event] = deque()

    def limit(self) -> None:
        """Block until fewer than the most are queued; call it before each forward."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        self._queued.append(event)
        if len(self._queued) > TICKS_AHEAD:
            self._queued.popleft().synchronize()
