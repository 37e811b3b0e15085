"""OFT and BOFT files -> rotations of a layer's outputs."""

import torch
from torch import Tensor

from sd_core.adapters.delta import Delta
from sd_core.adapters.module import Module
from sd_core.adapters.rebased import Rotated, Stage


def rotation(module: Module) -> Delta:
    """OFT has blocks (n, b, b) of one rotation, BOFT (m, n, b, b) of m rotations, each of other pairs of channels.

    The oldest files (`oft_diag`) hold the rotations themselves.
    """
    part = "oft_blocks" if module.has("oft_blocks") else "oft_diag"
    blocks = module.tensor(part)
    *stages, count, size, columns = blocks.shape if blocks.dim() in (3, 4) else (0, 0, 0)
    half = size // 2
    if size != columns or count * size != module.shape[0] or (stages and not _mixes(stages[0], size, count)):
        raise module.error(part, f"of shape {list(blocks.shape)} does not fit {module.shape[0]} output channels")
    rotations = cayley(blocks, module) if part == "oft_blocks" else blocks
    if not rotations.isfinite().all():
        raise module.error(part, "holds numbers too large for a rotation")
    if stages:
        turns = tuple(Stage(blocks, 2**index * half) for index, blocks in enumerate(rotations))
    else:  # LyCORIS and kohya multiply by the blocks' transpose
        turns = (Stage(rotations.transpose(1, 2).contiguous()),)
    rescale = module.shaped("rescale", module.shape[:1]) if module.has("rescale") else None
    return Rotated(module.base, turns, rescale, module.stride)


def cayley(blocks: Tensor, module: Module) -> Tensor:
    """The rotation (I + Q) (I - Q)^-1 of each block, Q its skew-symmetric part, no longer than alpha * out."""
    skew = blocks - blocks.transpose(-1, -2)
    longest = (module.number("alpha") or 0.0) * module.shape[0]
    length = float(skew.norm()) + 1e-8
    if 0 < longest < length:
        skew = skew * (longest / length)
    one = torch.eye(blocks.shape[-1])
    inverse, _ = torch.linalg.inv_ex(one - skew)
    rotations: Tensor = (one + skew) @ inverse
    return rotations


def _mixes(stages: int, size: int, count: int) -> bool:
    """Whether a butterfly of so many stages exists for `count` blocks: its last one takes whole runs of channels."""
    return size % 2 == 0 and count * size % (2**stages * (size // 2)) == 0
