"""What the tensors of one layer mean: a reader for each family of adapters.

Sources: LyCORIS' functional package, peft's tuners.lora, kohya-ss/sd-scripts' networks, ComfyUI's weight_adapter (the
two layouts of GLoRA).
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sd_core.adapters.delta import Delta, Dense, LowRank, Norm
from sd_core.adapters.factored import Hadamard, Kronecker
from sd_core.adapters.module import Module
from sd_core.adapters.rebased import Reweighed
from sd_core.adapters.rotations import rotation

EPS = torch.finfo(torch.float32).eps
"""What LyCORIS adds to the norms that it divides by."""

WORTH_EXPANDING = 4
"""A LoHa becomes a LowRank if that is so many times smaller than the dense change."""


@dataclass(frozen=True)
class Family:
    """`marks` are the parts of which any one shows that a layer's change is of this family, `parts` all that it has.

    `read` makes the change. `of_norms` says whether it is one of norm layers; None means of any layer.
    """

    name: str
    marks: frozenset[str]
    parts: frozenset[str]
    read: Callable[[Module], Delta]
    of_norms: bool | None = False


def family_of(parts: Collection[str]) -> Family | None:
    """The family that a layer's parts belong to."""
    return next((family for family in FAMILIES if not family.marks.isdisjoint(parts)), None)


def low_rank(module: Module) -> Delta:
    """up @ down, or with `mid` (r, r, rows, columns) its CP decomposition."""
    up = module.matrix("up", rows=module.shape[0])
    rank = up.shape[1]
    if module.has("mid"):
        down = _through(module.tensor("mid"), module.matrix("down", rows=rank, columns=module.shape[1]), module)
    else:
        down = module.matrix("down", rows=rank, columns=module.inputs)
    scale = module.scale(rank)
    bias = module.shaped("diff_b", module.shape[:1]) if module.has("diff_b") else None
    if module.has("up_bias"):
        bias = module.shaped("up_bias", module.shape[:1]).mul_(scale).add_(0.0 if bias is None else bias)
    return LowRank(_inputs_of(down, module), up.mul_(scale), module.stride, bias)


def hadamard(module: Module) -> Delta:
    """LoHa: the elementwise product of two low-rank changes; if their ranks are small, one of the ranks' product."""
    out, halves = module.shape[0], []
    for half in ("1", "2"):
        if module.has(f"hada_t{half}"):
            outer = module.matrix(f"hada_w{half}_a", columns=out).t().contiguous()
            inner = module.matrix(f"hada_w{half}_b", columns=module.shape[1])
            inner = _through(module.tensor(f"hada_t{half}"), inner, module)
        else:
            outer = module.matrix(f"hada_w{half}_a", rows=out)
            inner = module.matrix(f"hada_w{half}_b", rows=outer.shape[1], columns=module.inputs)
        halves += [outer, inner]
    a, b, c, d = halves
    a = a * module.scale(b.shape[0])
    ranks = b.shape[0] * d.shape[0]
    if WORTH_EXPANDING * ranks * (out + module.inputs) > out * module.inputs:
        return Hadamard((a, b, c, d), module.shape, module.stride)
    # The rows of a product of Kronecker's kind: (a_i * c_j) and (b_i * d_j) for every i and j.
    up = (a[:, :, None] * c[:, None]).flatten(1)
    down = (b[:, None] * d[None]).flatten(0, 1)
    return LowRank(_inputs_of(down, module), up, module.stride)


def kronecker(module: Module) -> Delta:
    """LoKr: each of the two factors whole or of low rank, the second also with a CP decomposition."""
    ranks: list[int] = []
    if module.has("lokr_w1"):
        first = module.matrix("lokr_w1")
    else:
        outer = module.matrix("lokr_w1_a")
        ranks.append(outer.shape[1])
        first = outer @ module.matrix("lokr_w1_b", rows=ranks[0])
    rows, columns = (whole // part for whole, part in zip(module.shape[:2], first.shape, strict=True))
    mark = "lokr_w1" if module.has("lokr_w1") else "lokr_w1_a"
    if (rows * first.shape[0], columns * first.shape[1]) != module.shape[:2]:
        raise module.error(mark, f"of {list(first.shape)} does not divide a weight of shape {list(module.shape)}")
    inner = replace(module, shape=(rows, columns, *module.kernel))
    if module.has("lokr_w2"):
        return Kronecker(_scaled(first, module, ranks), Dense(inner.shaped("lokr_w2", inner.shape), module.stride))
    if module.has("lokr_t2"):
        up = module.matrix("lokr_w2_a", columns=rows).t().contiguous()
        down = _through(module.tensor("lokr_t2"), module.matrix("lokr_w2_b", columns=columns), inner)
    else:
        up = module.matrix("lokr_w2_a", rows=rows)
        down = module.matrix("lokr_w2_b", rows=up.shape[1], columns=inner.inputs)
    second = LowRank(_inputs_of(down, inner), up, module.stride)
    return Kronecker(_scaled(first, module, [up.shape[1]]), second)


def full(module: Module) -> Delta:
    """The change itself, of weight or bias or both, of any layer."""
    bias = module.shaped("diff_b", module.shape[:1]) if module.has("diff_b") else None
    if module.is_norm:
        return Norm(module.shaped("diff", module.shape) if module.has("diff") else None, bias)
    if module.has("diff"):
        return Dense(module.shaped("diff", module.shape), module.stride, bias)
    # A change of the bias alone has no rank, but a product needs one.
    nothing = torch.zeros(1, module.inputs), torch.zeros(module.shape[0], 1)
    return LowRank(_inputs_of(nothing[0], module), nothing[1], module.stride, bias)


def norm(module: Module) -> Delta:
    """LyCORIS' change of a norm layer."""
    weight, bias = (module.shaped(part, module.shape) if module.has(part) else None for part in ("w_norm", "b_norm"))
    return Norm(weight, bias)


def rescaled(module: Module) -> Delta:
    """(IA)^3: a factor for each output channel, or for each input channel."""
    on_input = bool(module.number("on_input"))
    gain = module.shaped("weight", (module.shape[1 if on_input else 0],)).add_(1.0)
    return Reweighed(module.base, gain, on_out=not on_input, stride=module.stride)


def general(module: Module) -> Delta:
    """GLoRA: W A + B with A and B of low rank. Old files have the factors in the other order."""
    a1, a2, b1, b2 = (module.matrix(part) for part in ("a1", "a2", "b1", "b2"))
    out, inputs = module.shape[:2]
    if (a1.shape[0], a2.shape[1], b1.shape[0]) != (inputs, inputs, out):
        a1, a2, b1, b2 = a2, a1, b2, b1
    rank = a2.shape[0]
    if a1.shape != (inputs, rank) or a2.shape != (rank, inputs) or b1.shape[0] != out or b2.shape[1] != module.inputs:
        raise module.error("a1", f"and the tensors beside it do not fit a weight of shape {list(module.shape)}")
    if b1.shape[1] != b2.shape[0]:
        raise module.error("b1", f"has rank {b1.shape[1]}, but the tensor beside it has {b2.shape[0]}")
    scale, base = module.scale(rank), module.values
    if module.inputs == inputs:  # W A is of low rank as well
        up = torch.cat([base.flatten(1) @ a1, b1], dim=1).mul_(scale)
        return LowRank(_inputs_of(torch.cat([a2, b2]), module), up, module.stride)
    dense = torch.einsum("oi...,ij->oj...", base, a1 @ a2) + (b1 @ b2).reshape(module.shape)
    return Dense(dense.mul_(scale), module.stride)


def decomposed(change: Delta, module: Module) -> Delta:
    """DoRA: the changed weight, normed to the lengths that the file gives for each output or each input channel."""
    part = "magnitude" if module.has("magnitude") else "dora_scale"
    given = module.tensor(part)
    out, inputs = module.shape[:2]
    # PEFT's are always of outputs. LyCORIS' have the axis in their shape: (out, 1, ...), older ones (1, in, ...).
    on_out = part == "magnitude" or given.shape[:1] == (given.numel(),)
    if given.numel() != (out if on_out else inputs):
        raise module.error(part, f"of shape {list(given.shape)} does not fit a weight of shape {list(module.shape)}")
    changed = module.values + change.weight()
    length = changed.movedim(0 if on_out else 1, 0).flatten(1).norm(dim=1)
    return Reweighed(module.base, given.flatten() / (length + EPS), on_out, change, module.stride)


def is_decomposed(parts: Collection[str]) -> bool:
    """Whether a layer's change is one of DoRA's."""
    return not _DECOMPOSED.isdisjoint(parts)


_DECOMPOSED = frozenset({"dora_scale", "magnitude"})
_SCALED = frozenset({"alpha", "scale"})
_LORA = frozenset({"up", "down", "mid", "up_bias", "diff_b"})
_LOHA = frozenset(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
_LOKR = frozenset(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
_OFT = frozenset({"oft_blocks", "oft_diag", "rescale", "alpha"})

FAMILIES = (
    Family("LoRA", frozenset({"up", "down"}), _SCALED | _DECOMPOSED | _LORA, low_rank),
    Family("LoHa", frozenset({"hada_w1_a", "hada_w1_b"}), _SCALED | _DECOMPOSED | _LOHA, hadamard),
    Family("LoKr", frozenset({"lokr_w1", "lokr_w1_a"}), _SCALED | _DECOMPOSED | _LOKR, kronecker),
    Family("full", frozenset({"diff", "diff_b"}), frozenset({"diff", "diff_b"}), full, of_norms=None),
    Family("norm", frozenset({"w_norm", "b_norm"}), frozenset({"w_norm", "b_norm"}), norm, of_norms=True),
    Family("GLoRA", frozenset({"a1", "a2", "b1", "b2"}), _SCALED | {"a1", "a2", "b1", "b2"}, general),
    Family("IA3", frozenset({"on_input"}), frozenset({"on_input", "weight"}), rescaled),
    Family("OFT", frozenset({"oft_blocks", "oft_diag"}), _OFT, rotation),
)


def _scaled(factor: Tensor, module: Module, ranks: list[int]) -> Tensor:
    """The first factor of LoKr, scaled if one of the two is of low rank."""
    return factor * module.scale(ranks[0]) if ranks else factor


def _through(core: Tensor, down: Tensor, module: Module) -> Tensor:
    """A CP decomposition's core (r, r, rows, columns) times what is before it (r, in): (r, in * rows * columns)."""
    if core.dim() != 4 or core.shape[1] != down.shape[0] or core.shape[2:] != module.kernel:
        part = next(part for part in ("mid", "hada_t1", "lokr_t2") if module.has(part))
        raise module.error(part, f"of shape {list(core.shape)} does not fit a kernel of {list(module.kernel)}")
    return torch.einsum("ij...,jk->ik...", core, down).flatten(1)


def _inputs_of(down: Tensor, module: Module) -> Tensor:
    """A matrix (r, in * rows * columns) in the shape that the layer's product needs."""
    return down.reshape(-1, *module.shape[1:])
