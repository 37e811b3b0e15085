"""A UNet's forwards on tensors alone, as compilation and graph capture need them."""

import torch
from torch import Tensor, nn

from sd_core.models.attention import BasicTransformerBlock
from sd_core.models.given import Given
from sd_core.models.unet import UNet


class UNetStep(nn.Module):
    """A UNet that takes tensors alone."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self._names = [module.attn2.name for module in unet.modules() if isinstance(module, BasicTransformerBlock)]

    def flatten(self, given: Given) -> list[Tensor]:
        """Keys and values of each attention in turn, as `forward` takes them."""
        return [each for name in self._names for each in given.keys_values[name]]

    def forward(self, latents: Tensor, timesteps: Tensor, image_of_row: Tensor, *read: Tensor) -> Tensor:
        """If there are as many inputs as prompts, row i is input i and `image_of_row` is ignored."""
        out: Tensor = self.unet(latents, timesteps, self._given(latents, image_of_row, read))
        return out

    def _given(self, latents: Tensor, image_of_row: Tensor, read: tuple[Tensor, ...]) -> Given:
        keys_values = dict(zip(self._names, zip(read[::2], read[1::2], strict=True), strict=True))
        return Given(keys_values, image_of_row if len(read[0]) != len(latents) else None)


class KeepingStep(UNetStep):
    """`UNetStep` whose answer has the deep features as further channels."""

    def forward(self, latents: Tensor, timesteps: Tensor, image_of_row: Tensor, *read: Tensor) -> Tensor:
        output, deep = self.unet.whole(latents, timesteps, self._given(latents, image_of_row, read))
        return torch.cat([output, deep.to(output.dtype)], dim=1)


class OutermostStep(UNetStep):
    """The outermost block alone; the deep features (R, channels[0], H, W) come before keys and values."""

    def forward(self, latents: Tensor, timesteps: Tensor, image_of_row: Tensor, *read: Tensor) -> Tensor:
        deep, *keys_values = read
        given = self._given(latents, image_of_row, tuple(keys_values))
        return self.unet.outermost(latents, timesteps, deep.to(self.unet.dtype), given)
