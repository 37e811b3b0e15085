"""What a run of a sampler attaches to its UNet, by step and row."""

from dataclasses import dataclass, replace

from sd_core.pipeline.control import Steering
from sd_core.pipeline.image_prompts import Shown
from sd_core.work import UNATTACHED, Attachments


@dataclass(frozen=True)
class Attached:
    """What is attached to the UNet in one run of an image: always, and in some of its steps."""

    always: Attachments = UNATTACHED
    steering: tuple[Steering, ...] = ()
    shown: tuple[Shown, ...] = ()

    def at(self, step: int, steps: int, rows: int, negatives: int) -> Attachments:
        """For so many rows of a call, the first `negatives` of which belong to the negative prompt."""
        controls = tuple(each.on(rows, negatives) for each in self.steering if each.acts(step, steps))
        images = [each.on(rows, negatives) for each in self.shown if each.acts(step, steps)]
        if not controls and not images:
            return self.always
        return replace(self.always, controls=controls, image_prompts=tuple(image for each in images for image in each))


NOTHING_ATTACHED = Attached()
