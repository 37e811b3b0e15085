"""Merging of similar tokens, so that self-attention over many pixels costs less."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 2
"""Of each window of so many tokens a side, the first is a target, into which others are merged."""

SCORES_AT_ONCE = 2**24
"""Products of sources and targets that are held together: all of those of a picture of 2048x2048 would take 3 GB."""


@dataclass(frozen=True)
class Merging:
    """Which tokens of each row are merged into which. All indices are int64.

    `sources` (S,) and `targets` (D,) are places of the tokens. Of each row's sources, `kept` (B, S - r, 1) stay, and
    `gone` (B, r, 1) are averaged into the targets number `into` (B, r, 1).

    Source: Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion", section 3, with fixed targets.
    """

    sources: Tensor
    targets: Tensor
    kept: Tensor
    gone: Tensor
    into: Tensor

    @classmethod
    def of(cls, x: Tensor, size: tuple[int, int], ratio: float) -> Self:  # (B, H * W, C)
        """Merge the `ratio` of the tokens that are most like a target; tokens that no window holds are sources."""
        height, width = size
        is_target = torch.zeros(size, dtype=torch.bool, device=x.device)
        is_target[: height - height % WINDOW : WINDOW, : width - width % WINDOW : WINDOW] = True
        # A GPU would have to be waited for to list the places of a mask.
        count_of_targets = (height // WINDOW) * (width // WINDOW)
        places = is_target.flatten().int().argsort(stable=True)
        sources, targets = places.split([height * width - count_of_targets, count_of_targets])
        count = min(len(sources), int(height * width * ratio)) if len(targets) else 0
        directions = F.normalize(x, dim=-1)
        if not count:
            everything = torch.arange(len(sources), device=x.device)[:, None].expand(len(x), -1, -1)
            return cls(sources, targets, everything, everything[:, :0], everything[:, :0])
        likeness, nearest = _nearest(directions[:, sources], directions[:, targets])
        order = likeness.argsort(dim=-1, descending=True)[..., None]
        gone, kept = order[:, :count], order[:, count:]
        return cls(sources, targets, kept, gone, nearest[..., None].gather(1, gone))

    def merge(self, x: Tensor) -> Tensor:  # (B, H * W, C)
        """The tokens that stay and the targets, (B, H * W - r, C)."""
        width = x.shape[-1]
        sources, targets = x[:, self.sources], x[:, self.targets]
        merged = targets.scatter_reduce(
            1, self.into.expand(-1, -1, width), sources.gather(1, self.gone.expand(-1, -1, width)), reduce="mean"
        )
        return torch.cat([sources.gather(1, self.kept.expand(-1, -1, width)), merged], dim=1)

    def unmerge(self, x: Tensor) -> Tensor:  # (B, H * W - r, C)
        """Every token again, (B, H * W, C): a merged one is what its target became."""
        width = x.shape[-1]
        kept, targets = x.split([self.kept.shape[1], len(self.targets)], dim=1)
        sources = x.new_empty(len(x), len(self.sources), width)
        sources.scatter_(1, self.kept.expand(-1, -1, width), kept)
        sources.scatter_(1, self.gone.expand(-1, -1, width), targets.gather(1, self.into.expand(-1, -1, width)))
        out = x.new_empty(len(x), len(self.sources) + len(self.targets), width)
        out[:, self.sources], out[:, self.targets] = sources, targets
        return out


def _nearest(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:  # (B, S, C), (B, D, C)
    """The likeness of each source to its nearest target, and that target's number, (B, S) each."""
    at_once = max(1, SCORES_AT_ONCE // (len(sources) * targets.shape[1]))
    parts = [(part @ targets.transpose(1, 2)).max(dim=-1) for part in sources.split(at_once, dim=1)]
    return torch.cat([part.values for part in parts], dim=1), torch.cat([part.indices for part in parts], dim=1)
