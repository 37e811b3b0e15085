"""What a forward of a UNet is given beyond its prompts: what jobs ask for that departs from the trained network."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sd_core.device import upload
from sd_core.models.given import FreeU, Given
from sd_core.models.unet import UNet
from sd_core.work import UNetWork


def departing(given: Given, works: Sequence[UNetWork], unet: UNet) -> Given:
    """`given` with the extras of these works, which agree in `tiling` and `tome_ratio`; the same object without any."""
    first = works[0].extras
    if first.tiling:
        given = replace(given, padding=unet.circular)
    if first.tome_ratio:
        given = replace(given, merged=dict.fromkeys(unet.finest_attentions, first.tome_ratio))
    perturbed, rows_of_freeu, scales, start = list[int](), list[int](), list[tuple[float, ...]](), 0
    for work in works:
        end = start + len(work.contexts)
        perturbed += [start + row for row in work.perturbed]
        if work.extras.freeu is not None:
            rows_of_freeu += range(start, end)
            scales += [work.extras.freeu] * (end - start)
        start = end
    if perturbed:
        given = replace(given, identity={unet.middle_attention: upload(torch.tensor(perturbed), unet.device)})
    if rows_of_freeu:
        rows, factors = torch.tensor(rows_of_freeu), torch.tensor(scales)
        given = replace(given, freeu=FreeU(upload(rows, unet.device), upload(factors, unet.device)))
    return given
