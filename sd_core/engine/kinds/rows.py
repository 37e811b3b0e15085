"""The rows of a forward of a UNet: works one after another, their contexts one after another."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sd_core.device import upload
from sd_core.networks import Applied
from sd_core.work import Context, Control, ImagePrompt, UNetWork


@dataclass(frozen=True)
class Row:
    """Row `index` of the work at `position` of a batch."""

    position: int
    work: UNetWork
    index: int

    @property
    def context(self) -> Context:
        return self.work.contexts[self.index]

    @property
    def tokens(self) -> int:
        return self.context.states.shape[1]

    @property
    def input(self) -> tuple[int, int]:
        """Which input it continues: rows of one input have equal values."""
        return self.position, self.work.image_of_row[self.index]

    @property
    def latents(self) -> Tensor:  # (1, C, h, w)
        image = self.work.image_of_row[self.index]
        return self.work.latents[image : image + 1]

    @property
    def deep(self) -> Tensor | None:  # (1, C, h, w)
        return None if self.work.deep is None else self.work.deep[self.index : self.index + 1]

    @property
    def adapters(self) -> tuple[Applied, ...]:
        return self.work.attached.adapters

    @property
    def controls(self) -> list[Control]:
        return [control for control in self.work.attached.controls if control.acts_on(self.index)]

    @property
    def image_prompts(self) -> list[ImagePrompt]:
        return [image for image in self.work.attached.image_prompts if image.acts_on(self.index)]

    @property
    def is_perturbed(self) -> bool:
        return self.index in self.work.perturbed

    def alone(self) -> UNetWork:
        """The same row as a work of its own."""
        return replace(
            self.work,
            latents=self.latents,
            contexts=(self.context,),
            image_of_row=(0,),
            perturbed=(0,) if self.is_perturbed else (),
            deep=self.deep,
            attached=replace(
                self.work.attached,
                controls=tuple(replace(each, rows=None) for each in self.controls),
                image_prompts=tuple(replace(each, rows=None) for each in self.image_prompts),
            ),
        )


def rows_of(works: Sequence[UNetWork]) -> list[Row]:
    return [Row(position, work, index) for position, work in enumerate(works) for index in range(len(work.contexts))]


def firsts_of(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The index at which each distinct key comes first, and for every key in turn which of these keys it is."""
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    firsts = dict(zip(reversed(keys), reversed(range(len(keys))), strict=True))
    return [firsts[key] for key in places], [places[key] for key in keys]


def stacked(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor]:
    """The latents (n, C, h, w) and the timesteps (n,) of rows."""
    timesteps = torch.tensor([row.work.timestep for row in rows], dtype=torch.float32)
    return torch.cat([row.latents for row in rows]), upload(timesteps, device)
