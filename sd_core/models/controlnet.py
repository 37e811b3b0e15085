"""ControlNet: a copy of a UNet's encoder that reads a hint, under the names of its authors' files."""

from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn

from sd_core.models.given import NOTHING, Given
from sd_core.models.layers import Conv2d, circular_padding, name_layers
from sd_core.models.unet import Encoder, UNetConfig

HALVING = (2, 4, 6)
"""The convolutions of the hint block, counted from 0, that halve each side: a hint has 8 times as many pixels a side
as the latents."""

DOWNSCALE = 2 ** len(HALVING)

NUMBERS = 4
"""Numbers that embedding a hint holds at its peak for a pixel, over the widest of the convolutions before the first
halving."""


@dataclass(frozen=True)
class ControlNetConfig:
    """The UNet whose encoder it copies, and the widths of the hint block's seven inner convolutions."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 16, 32, 32, 96, 96, 256)


class ControlNet(Encoder):
    """Predicts what is added to a UNet's skip connections and to its middle block's output.

    `key` identifies the weights: equal keys mean equal networks. One that is `pooled` adds the mean of each output over
    its height and width, as models that read a hint's style and not its shapes were trained.

    Source: Zhang, Rao & Agrawala 2023, "Adding Conditional Control to Text-to-Image Diffusion Models"; names and layer
    order are those of its authors' `cldm.ControlNet`.
    """

    nbytes = 0
    """Memory that its weights take in use; whoever loads it says how much."""

    def __init__(self, config: ControlNetConfig, key: str = "", *, pooled: bool = False) -> None:
        super().__init__(config.unet)
        self.key, self.pooled = key, pooled
        self.hint_channels = config.hint_channels
        widths = (config.hint_channels, *config.hint_widths, config.unet.channels[0])
        layers: list[nn.Module] = []
        for index, (taken, made) in enumerate(pairwise(widths)):
            layers += [Conv2d(taken, made, 3, stride=2 if index in HALVING else 1, padding=1), nn.SiLU(inplace=True)]
        self.input_hint_block = nn.Sequential(*layers[:-1])  # no activation after the last convolution
        self.zero_convs = nn.ModuleList(nn.Sequential(Conv2d(width, width, 1)) for width in self.skip_channels)
        deepest = config.unet.channels[-1]
        self.middle_block_out = nn.Sequential(Conv2d(deepest, deepest, 1))
        name_layers(self)
        self.circular = circular_padding(self)

    def embed(self, hint: Tensor, given: Given = NOTHING) -> Tensor:
        """A hint (B, hint_channels, 8 * H, 8 * W) in [0, 1] -> (B, channels[0], H, W), the same at every step."""
        x = hint.to(self.dtype)
        for layer in self.input_hint_block:
            x = layer(x, given=given) if isinstance(layer, Conv2d) else layer(x)
        return x

    def forward(self, x: Tensor, timesteps: Tensor, hint: Tensor, given: Given) -> tuple[Tensor, ...]:
        """Latents (B, in_channels, H, W), timesteps (B,), embedded hints (B, channels[0], H, W) and R prompts.

        Returns the residual of each skip connection (R, C, h, w) and then of the middle block's output; if `pooled`,
        h and w are 1.
        """
        encoded = self.encoded(x, timesteps, given, hint)
        layers = [*self.zero_convs, self.middle_block_out]
        return tuple(
            self._residual(layer, output, given if index < encoded.shared else given.expanded)
            for index, (layer, output) in enumerate(zip(layers, encoded.outputs, strict=True))
        )

    def outermost(self, x: Tensor, hint: Tensor, given: Given) -> tuple[Tensor, ...]:
        """The first skip connection's residual alone, which is what the outermost block of a UNet takes."""
        (convolution,) = self.input_blocks[0].children()
        output = convolution(x.to(self.dtype), given=given) + hint
        return (self._residual(self.zero_convs[0], output, given),)

    def _residual(self, layer: nn.Module, output: Tensor, given: Given) -> Tensor:
        (convolution,) = layer.children()
        residual: Tensor = convolution(output, given=given)
        return given.per_row(residual.mean(dim=(2, 3), keepdim=True) if self.pooled else residual)

    def hint_bytes(self, pixels: int, /) -> int:
        """Memory that embedding hints of so many pixels holds at its peak, beyond weights."""
        first = self.input_hint_block[0]
        assert isinstance(first, Conv2d)
        return NUMBERS * first.out_channels * pixels * self.dtype.itemsize
