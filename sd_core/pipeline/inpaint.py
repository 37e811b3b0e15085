"""The part of a masked image that is repainted, and how it is put back: work for the host, without a network.

In order: the mask is inverted, image and mask grow by the border of `outpaint`, the mask is blurred, the masked box is
cut out and resized to the generated size, and the masked part is filled. The generated image is then laid over the sent
one.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch

from sd_core.device import upload
from sd_core.pipeline import masks
from sd_core.pipeline.images import Frame, Source, digest, to_pixels
from sd_core.pipeline.masks import Box
from sd_core.pipeline.once import Once
from sd_core.pipeline.sizes import Enlargement, enlarged, resized
from sd_core.request import Request


@dataclass(frozen=True)
class Canvas:
    """What is repainted of a masked image.

    - `image` uint8 (h, w, 3): what is encoded; of the generated size, unless latents are resized.
    - `shown` uint8 (H, W, 3): the image at the generated size, its masked part not filled.
    - `mask` uint8 (H, W): the blurred mask at the generated size.
    - `sent` uint8 (H', W', 3) and `opaque` uint8 (H', W'): the answer without the generated image, and how much of
      that is laid over it; `box` is where. `opaque` is the mask before it was blurred, so pixels that are black in it
      stay exactly as they are.
    """

    image: np.ndarray
    shown: np.ndarray
    mask: np.ndarray
    sent: np.ndarray
    opaque: np.ndarray
    box: Box
    is_part: bool = False

    @cached_property
    def key(self) -> Hashable:
        """Equal for equal canvases."""
        return tuple(digest(each) for each in (self.image, self.shown, self.mask))

    def source(self, fill: str, device: torch.device, *, shows_kept: bool) -> Source:
        """The same on a device. With `shows_kept` the UNet takes the kept pixels, else it needs none."""
        mask = upload(torch.from_numpy(self.mask), device)[None, None].float() / masks.SHADES
        kept = to_pixels(self.shown, device) * (mask < 0.5) if shows_kept else None
        frame = Frame(self.shown, self.mask, self.sent.shape[1::-1], self.box if self.is_part else None)
        return Source(self.key, to_pixels(self.image, device), mask, fill, kept, frame=frame)

    def enlarged(self, to: Enlargement) -> "Canvas":
        """The same for a hires pass. A whole image is answered at that size, a part is put back where it was."""
        shown, mask = to.applied(self.shown), to.applied(self.mask)
        if self.is_part:
            return replace(self, image=shown, shown=shown, mask=mask)
        return Canvas(shown, shown, mask, shown, to.applied(self.opaque), (0, 0, *to.size))

    def put_back(self, generated: np.ndarray) -> np.ndarray:
        """The answer, from the generated image uint8 (H, W, 3)."""
        left, top, right, bottom = self.box
        place = slice(top, bottom), slice(left, right)
        part = resized(generated, (right - left, bottom - top), "crop")
        answer = self.sent.copy()
        answer[place] = masks.mixed(self.sent[place], part, self.opaque[place])
        return answer


@dataclass(frozen=True)
class Masked:
    """The last pass' canvas, and what makes the source; None if its mask is black, so that there is nothing to
    repaint.

    The source is made on the engine's thread, which alone uses the device.
    """

    canvas: Canvas
    source: Once[Source] | None


def masked(request: Request, device: torch.device, *, shows_kept: bool) -> Masked:
    """A request whose `is_masked` is true, prepared for generating; arguments as of `Canvas.source`."""
    canvas = canvas_of(request)
    larger = None if request.hires is None else canvas.enlarged(enlarged(*request.generated_size, request.hires))
    last = larger or canvas
    if not canvas.opaque.any():
        return Masked(last, None)
    for each in (canvas, last):
        assert each.key  # computed here on the host, because it takes a while

    def source() -> Source:
        of = partial(Canvas.source, fill=request.inpaint_fill, device=device, shows_kept=shows_kept)
        return replace(of(canvas), larger=None if larger is None else of(larger))

    return Masked(last, Once(source))


def canvas_of(request: Request) -> Canvas:
    """The canvas of a request whose `is_masked` is true."""
    assert request.image is not None
    image, mask = request.image, request.mask
    if mask is None:
        mask = np.zeros(image.shape[:2], np.uint8)
    elif request.mask_invert:
        mask = masks.SHADES - mask
    if request.outpaint is not None:
        image, mask = masks.grown(image, mask, request.outpaint)
    soft = masks.blurred(mask, *request.mask_blurs)
    size = request.generated_size
    if request.inpaint_area == "masked":
        return _part(request, image, mask, soft)
    encoded = masks.filled(image, soft) if request.inpaint_fill != "original" else image
    shown = resized(image, size)
    return Canvas(encoded, shown, resized(soft, size), shown, resized(mask, size), (0, 0, *size))


def _part(request: Request, image: np.ndarray, mask: np.ndarray, soft: np.ndarray) -> Canvas:
    """The masked box of the image, resized to the generated size."""
    size = request.generated_size
    # A blur may round a tiny mask to nothing, so the box is that of both.
    box = masks.masked_box(np.maximum(soft, mask), request.inpaint_padding, size[0] / size[1])
    box = box or (0, 0, image.shape[1], image.shape[0])
    left, top, right, bottom = box
    place = slice(top, bottom), slice(left, right)
    shown, soft = resized(image[place], size, "fill"), resized(soft[place], size, "fill")
    encoded = masks.filled(shown, soft) if request.inpaint_fill != "original" else shown
    return Canvas(encoded, shown, soft, image, mask, box, is_part=True)
