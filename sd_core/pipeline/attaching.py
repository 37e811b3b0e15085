"""What a run of a sampler attaches to its UNet, by step and row."""

from dataclasses import dataclass, replace

from sd_core.pipeline.image_prompts import Shown
from sd_core.work import UNATTACHED, Attachments


@dataclass(frozen=True)
class Attached:
    """What is attached to the UNet in one run of an image: always, and in some of its steps."""

    always: Attachments = UNATTACHED
    shown: tuple[Shown, ...] = ()

    def at(self, step: int, steps: int, rows: int, *, has_uncond: bool) -> Attachments:
        """For the rows of a call, the first of which belongs to the negative prompt if `has_uncond`."""
        images = tuple(
            prompt
            for shown in self.shown
            if shown.acts(step, steps)
            for prompt in shown.prompts(rows, has_uncond=has_uncond)
        )
        return replace(self.always, image_prompts=images) if images else self.always


NOTHING_ATTACHED = Attached()
