"""The controls of a job's images: hints, made on the host and embedded, and the steps and rows that they act on."""

from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from sd_core.additions import ControlNet
from sd_core.device import upload
from sd_core.models.controlnet import ControlNet as ControlNetwork
from sd_core.models.t2i_adapter import T2IAdapter
from sd_core.networks import Guide
from sd_core.pipeline.images import Frame, Source, digest
from sd_core.pipeline.once import Once
from sd_core.pipeline.sizes import resized
from sd_core.pipeline.span import acts
from sd_core.preprocessors.preprocess import inpaint_hint, preprocess
from sd_core.request import Request
from sd_core.work import Control, HintWork, HostTask

SOFT = 0.825
"""Each output of a ControlNet that prompts outweigh has this part of the next deeper one's weight."""

SOFT_FEATURES = (0.25, 0.62, 0.825, 1.0)
"""The same of a T2I-Adapter's levels (sd-webui-controlnet)."""

MAX_MAP_COLORS = 200
"""Images of so few colours, but more than two, are maps whose colours must not be mixed (sd-webui-controlnet)."""


MAX_SKEW = 0.02
"""Part of a side by which a control image may differ in aspect without a warning."""

R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class Steering:
    """A control, the part of a run's steps in which it acts, and whether rows of negative prompts are left out."""

    control: Control
    start: float = 0.0
    end: float = 1.0
    prompts_only: bool = False

    def acts(self, step: int, steps: int) -> bool:
        """Whether it acts at step `step` of `steps`."""
        return acts(step, steps, self.start, self.end)

    def on(self, rows: int, negatives: int) -> Control:
        """The control for so many rows, the first `negatives` of which belong to the negative prompt."""
        is_part = self.prompts_only and negatives
        return replace(self.control, rows=tuple(range(negatives, rows))) if is_part else self.control


@dataclass(frozen=True)
class HintImage:
    """A hint at the size of its run, float32 (3, H, W) in [0, 1], -1 where it is to be repainted."""

    key: Hashable
    pixels: np.ndarray


class Hints:
    """The hints of a job for each of its runs, made once for all of its images. Used by the engine's thread only."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._made: dict[tuple[int, int], Once[HintImage]] = {}

    def steering(
        self,
        guides: Sequence[Guide],
        run: int,
        size: tuple[int, int],
        source: Source | None,
        device: torch.device,
    ) -> Generator[Any, Any, tuple[Steering, ...]]:
        """The controls of run `run` at this size (width, height), whose hints are embedded; `source` as of that run."""
        steering = []
        for index, (unit, guide) in enumerate(zip(self._request.controlnets, guides, strict=True)):
            if unit.weight == 0 or not _is_in(unit, run, has_hires=self._request.hires is not None):
                continue
            frame = None if source is None else source.frame
            make = self._made.setdefault(
                (index, run), Once(partial(hint_image, unit, self._request.image, size, frame))
            )
            made: HintImage = yield HostTask(make)
            pixels = upload(torch.from_numpy(made.pixels), device)[None]
            hint = yield HintWork(guide, made.key, pixels, self._request.tiling)
            pools = isinstance(guide, ControlNetwork) and guide.pooled
            control = Control(guide, hint, scales_of(unit, guide))
            steering.append(Steering(control, unit.start, unit.end, unit.mode == "control" or pools))
        return tuple(steering)


def with_hints(request: R, images: Sequence[Image.Image | None]) -> tuple[R, list[str]]:
    """The request whose `controlnets` have these RGB images, None for one that uses the job's own; with warnings.

    The job's own image is there already, because it may decide the size.
    """
    units, warnings = [], []
    width, height = request.generated_size
    for index, (unit, image) in enumerate(zip(request.controlnets, images, strict=True)):
        units.append(replace(unit, image=None if image is None else np.array(image, dtype=np.uint8)))
        if image is not None and abs(image.width * height / (image.height * width) - 1) > MAX_SKEW:
            sizes = f"{image.width}x{image.height} pixels became {width}x{height}"
            warnings.append(f"controlnets[{index}].image: {sizes} (resize_mode {unit.resize_mode})")
    return replace(request, controlnets=tuple(units)), warnings


def scales_of(unit: ControlNet, guide: Guide) -> tuple[float, ...]:
    """The factor of each output of a network, by the weight and the mode of a job's unit."""
    is_soft = unit.mode != "balanced"
    if isinstance(guide, T2IAdapter):
        levels = len(guide.config.channels)
        factors = ((SOFT_FEATURES[0],) * levels + SOFT_FEATURES)[-levels:] if is_soft else (1.0,) * levels
    else:
        assert isinstance(guide, ControlNetwork)
        deepest = len(guide.zero_convs)
        factors = tuple(SOFT ** (deepest - index) if is_soft else 1.0 for index in range(deepest + 1))
    return tuple(unit.weight * factor for factor in factors)


def hint_image(unit: ControlNet, image: np.ndarray | None, size: tuple[int, int], frame: Frame | None) -> HintImage:
    """The hint of a unit at `size` (width, height); `image` and `frame` are what is repainted of the job's image."""
    fitted = _fitted(unit, image, size, frame)
    if unit.preprocessor == "inpaint":
        assert frame is not None  # a job without a mask is refused
        made = inpaint_hint(fitted, resized(frame.mask, size))
    else:
        made = preprocess(unit.preprocessor, fitted, unit.low, unit.high).astype(np.float32) / 255
    pixels = np.ascontiguousarray(made.transpose(2, 0, 1))
    return HintImage(digest(pixels), pixels)


def _fitted(unit: ControlNet, image: np.ndarray | None, size: tuple[int, int], frame: Frame | None) -> np.ndarray:
    """The unit's own image, or the job's, uint8 (H, W, 3) at the size."""
    if unit.image is None:
        image = image if frame is None else frame.shown
        assert image is not None  # a job without any image is refused
        return _resized(image, size, "stretch")
    if frame is not None and frame.box is not None:
        left, top, right, bottom = frame.box
        whole = _resized(unit.image, frame.sent, unit.resize_mode)
        return _resized(whole[top:bottom, left:right], size, "fill")
    return _resized(unit.image, size, unit.resize_mode)


def _resized(image: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    colors = Image.fromarray(image).getcolors(MAX_MAP_COLORS - 1)
    is_map = colors is not None and len(colors) > 2
    return resized(image, size, mode, Image.Resampling.NEAREST if is_map else None)


def _is_in(unit: ControlNet, run: int, *, has_hires: bool) -> bool:
    """Whether a unit acts in a run, the second of which is the hires pass."""
    return not has_hires or unit.hr_option == "both" or unit.hr_option == ("low", "high")[run]
