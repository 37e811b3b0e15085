"""The part of a run's steps in which something acts."""


def acts(step: int, steps: int, start: float, end: float) -> bool:
    """Whether what acts from `start` to `end`, parts (0..1) of the steps, acts at step `step` of `steps`.

    A step that is only partly inside is left out: diffusers' rule for a ControlNet.
    """
    return step / steps >= start and (end == 1 or (step + 1) / steps <= end)
