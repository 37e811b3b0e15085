"""Mixed-precision optimization: forwards in bfloat16, updates and their moving average in float32."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Optimizer:
    """AdamW on float32 copies of a bfloat16 module's parameters, with warm-up, cosine decay and an average.

    The result of a training is the average (EMA): it generates better images than the last step's weights.
    """

    def __init__(
        self, module: nn.Module, learning_rate: float, steps: int, ema_decay: float = 0.999, warmup: int = 100
    ) -> None:
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.names = [n for n, p in module.named_parameters() if p.requires_grad]
        self.master = [p.detach().float().clone() for p in self.parameters]
        self.average = [p.clone() for p in self.master]
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.bfloat16()
        self.adamw = torch.optim.AdamW(
            self.master, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, foreach=True
        )
        self.learning_rate, self.steps, self.warmup, self.ema_decay = learning_rate, steps, warmup, ema_decay
        self.step_index = 0

    def step(self, loss: Tensor) -> None:
        loss.backward()
        for master, parameter in zip(self.master, self.parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.master, 1.0)
        progress = self.step_index / max(1, self.steps)
        rate = self.learning_rate * min(1.0, (self.step_index + 1) / self.warmup)
        self.adamw.param_groups[0]["lr"] = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
        self.adamw.step()
        self.step_index += 1
        # A smaller decay at the start, so that the average forgets the random initialization.
        decay = min(self.ema_decay, (1 + self.step_index) / (10 + self.step_index))
        torch._foreach_lerp_(self.average, self.master, 1 - decay)
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.master, strict=True):
                parameter.copy_(master)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged float32 weights by name."""
        return dict(zip(self.names, (a.clone() for a in self.average), strict=True))


def to_model_range(images: Iterable[Tensor]) -> Tensor:
    """uint8 images (H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.stack(list(images)).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
