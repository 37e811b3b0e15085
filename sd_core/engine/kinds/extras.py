"""What a forward of a UNet is given beyond its prompts: what jobs ask for that departs from the trained network."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from sd_core.device import upload
from sd_core.engine.kinds.rows import Row
from sd_core.models.given import FreeU, Given
from sd_core.models.unet import UNet


def departing(given: Given, rows: Sequence[Row], unet: UNet) -> Given:
    """`given` with the extras of these rows, which agree in `tiling` and `tome_ratio`; the same object without any."""
    first = rows[0].work.extras
    if first.tiling:
        given = replace(given, padding=unet.circular)
    if first.tome_ratio:
        given = replace(given, merged=dict.fromkeys(unet.finest_attentions, first.tome_ratio))
    perturbed = [index for index, row in enumerate(rows) if row.is_perturbed]
    if perturbed:
        given = replace(given, identity={unet.middle_attention: upload(torch.tensor(perturbed), unet.device)})
    scales = {index: row.work.extras.freeu for index, row in enumerate(rows) if row.work.extras.freeu is not None}
    if scales:
        reweighed, factors = torch.tensor(list(scales)), torch.tensor(list(scales.values()))
        given = replace(given, freeu=FreeU(upload(reweighed, unet.device), upload(factors, unet.device)))
    return given
