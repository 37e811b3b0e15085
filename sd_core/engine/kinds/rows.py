"""The rows of a forward of a UNet: works one after another, their contexts one after another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sd_core.work import Applied, Context, UNetWork


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
        )


def rows_of(works: Sequence[UNetWork]) -> list[Row]:
    return [Row(position, work, index) for position, work in enumerate(works) for index in range(len(work.contexts))]
