"""The controls of a forward of a UNet: each network runs once, on the rows that have it, and its outputs are added."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sd_core.device import upload
from sd_core.engine.kinds.prompts import PromptReader
from sd_core.engine.kinds.rows import Row, firsts_of, stacked
from sd_core.layout.choose import bytes_to_pack
from sd_core.models.controlnet import ControlNet
from sd_core.models.given import Given, Residuals
from sd_core.models.unet import UNet
from sd_core.work import Control, UNetWork

COST = 0.34
"""Of a ControlNet for one row, over that of the UNet: 134 of 402 GMAC with v1.5 at 512 x 512."""

NUMBERS = 12
"""Numbers that a control holds for a latent of a row while the UNet runs, over its first width."""


@dataclass(frozen=True)
class Steered:
    """A row of a forward, at this index, and one of its controls."""

    index: int
    row: Row
    control: Control


class Controls:
    """Runs the networks that steer a UNet, with what they read of the prompts kept."""

    def __init__(self, prompts: PromptReader, device: torch.device) -> None:
        self._prompts, self._device = prompts, device

    def steering(self, given: Given, rows: Sequence[Row], tokens: int) -> Given:
        """`given` with what the rows' controls add, whose contexts are repeated to `tokens`; the same object without.

        If the rows continue from deep features, only what the outermost block takes is computed.
        """
        groups: dict[Hashable, list[Steered]] = {}
        for index, row in enumerate(rows):
            for control in row.controls:
                groups.setdefault(control.network.key, []).append(Steered(index, row, control))
        if not groups:
            return given
        is_outermost = rows[0].deep is not None
        residuals, features = list[Residuals](), list[Residuals]()
        for group in groups.values():
            network = group[0].control.network
            if isinstance(network, ControlNet):
                outputs = self._outputs(network, group, tokens, is_outermost=is_outermost)
                residuals.append(self._scaled(outputs, group, len(rows)))
            elif not is_outermost:
                values = [steered.control.hint.values for steered in group]
                features.append(
                    self._scaled([torch.cat(level) for level in zip(*values, strict=True)], group, len(rows))
                )
        return replace(given, control=tuple(residuals), features=tuple(features))

    def _outputs(
        self, network: ControlNet, group: Sequence[Steered], tokens: int, *, is_outermost: bool
    ) -> tuple[Tensor, ...]:
        """What a ControlNet adds to each of these rows; what rows of one input share is computed once."""
        firsts, images = firsts_of([(steered.row.input, steered.control.hint.key) for steered in group])
        latents, times = stacked([group[first].row for first in firsts], self._device)
        # An inpainting UNet takes more channels, which come after those of the latents.
        latents = latents[:, : network.config.in_channels]
        hint = torch.cat([group[first].control.hint.values[0] for first in firsts])
        contexts = [steered.row.context for steered in group]
        given = self._prompts.given((network.key, network), contexts, images, tokens, [()] * len(group))
        if group[0].row.work.extras.tiling:
            given = replace(given, padding=network.circular)
        if is_outermost:
            return network.outermost(latents, hint, given)
        outputs: tuple[Tensor, ...] = network(latents, times, hint, given)
        return outputs

    def _scaled(self, outputs: Sequence[Tensor], group: Sequence[Steered], count: int) -> Residuals:
        """The outputs, one entry for each of the group, by the scales of its row; `count` rows share the forward."""
        indices = [steered.index for steered in group]
        scales = upload(torch.tensor([steered.control.scales for steered in group]), self._device)
        return Residuals(
            # The outermost block takes the first output alone.
            [
                (output * scale[:, None, None, None]).to(output.dtype)
                for output, scale in zip(outputs, scales.T, strict=False)
            ],
            None if indices == list(range(count)) else upload(torch.tensor(indices), self._device),
        )


def cost_of_controls(work: UNetWork) -> float:
    """In rows of the UNet."""
    return COST * sum(_rows(work, control) for control in work.attached.controls if _is_network(control))


def bytes_of_controls(work: UNetWork, unet: UNet) -> int:
    """What controls hold while the UNet runs, and what their weights take at their first use."""
    controls = work.attached.controls
    numbers = NUMBERS * unet.config.channels[0] * work.latents.shape[2:].numel()
    networks = {control.network.key: control.network for control in controls}.values()
    waiting = sum(bytes_to_pack(network) for network in networks if isinstance(network, ControlNet))
    return numbers * unet.dtype.itemsize * sum(_rows(work, control) for control in controls) + waiting


def _rows(work: UNetWork, control: Control) -> int:
    return len(work.contexts) if control.rows is None else len(control.rows)


def _is_network(control: Control) -> bool:
    return isinstance(control.network, ControlNet)
