"""Hidden states of a prompt's chunks -> the context that the UNet attends to, with the weights applied."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sd_core.text.chunks import Chunk


def join(states: Sequence[Tensor], chunks: Sequence[Chunk], empty: Tensor | None = None) -> Tensor:
    """Hidden states (1, T, D) of each chunk -> (1, n * T, D), weighted in float32.

    With `empty`, the states (1, T, D) of the empty prompt, as ComfyUI does: z = empty + weight * (z - empty). Without
    it as AUTOMATIC1111 does: z is multiplied by the weights, then by what restores the chunk's mean.
    """
    weighted = [
        _weighted(each, chunk, empty) if chunk.is_weighted else each for each, chunk in zip(states, chunks, strict=True)
    ]
    return weighted[0] if len(weighted) == 1 else torch.cat(weighted, dim=1)


def _weighted(states: Tensor, chunk: Chunk, empty: Tensor | None) -> Tensor:
    z = states.float()
    weights = torch.tensor(chunk.weights, device=z.device)[None, :, None]
    if empty is None:
        weighted = z * weights
        return (weighted * (z.mean() / weighted.mean())).to(states.dtype)
    base = empty.float()
    # Exactly z where the weight is 1.
    return torch.where(weights == 1, z, base + weights * (z - base)).to(states.dtype)
