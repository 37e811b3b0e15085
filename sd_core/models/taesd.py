"""TAESD, a tiny autoencoder of v1's latents, for drafts and previews: 1.2 million weights, no attention, no norms.

Source: Ollin Boer Bohan, "TAESD", https://github.com/madebyollin/taesd; the names are those of diffusers'
`AutoencoderTiny`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.given import NOTHING, Given
from sd_core.models.layers import Conv2d, circular_padding, name_layers
from sd_core.models.vae import Autoencoder, VAEConfig

BLOCKS = (1, 3, 3, 3)
"""Residual blocks of each level, from full to coarsest resolution."""

RANGE = 3.0
"""The decoder squeezes latents softly into this range."""

WIDTH = 64


class Block(nn.Module):
    """A residual block: three convolutions with a ReLU after each sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [Conv2d(width, width, 3, padding=1) for _ in range(3)]
        first, second, third = convolutions
        # ReLU holds a place: the files count it.
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (B, C, H, W)
        h = F.relu(self.conv[0](x, given=given))
        h = F.relu(self.conv[2](h, given=given))
        return F.relu(self.conv[4](h, x, given))


class Half(nn.Module):
    """The encoder or the decoder: a chain of `layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        for layer in self.layers:
            x = layer(x, given=given) if isinstance(layer, Block | Conv2d) else layer(x)
        return x


class TAESD(Autoencoder):
    """The decoder and, unless the file has none, the encoder; takes and gives the same latents as v1's VAE.

    Its posterior has no variance: an image has one encoding.
    """

    def __init__(self, width: int = WIDTH, z_channels: int = 4, *, has_encoder: bool = True) -> None:
        super().__init__()
        self.config = VAEConfig(z_channels=z_channels, channels=(width,) * len(BLOCKS))
        self.decoder = Half(_decoder(self.config))
        self.encoder = Half(_encoder(self.config)) if has_encoder else None
        name_layers(self)
        self._circular = Given(padding=circular_padding(self))

    @property
    def encodes(self) -> bool:
        return self.encoder is not None

    def moments(self, pixels: Tensor, *, tiling: bool = False) -> tuple[Tensor, Tensor]:  # (B, 3, H, W)
        assert self.encoder is not None, "the file holds no encoder"
        given = self._circular if tiling else NOTHING
        latents = self.encoder((pixels.to(self.dtype) + 1) / 2, given).float()
        mean = latents / self.config.scale_factor
        return mean, torch.full_like(mean, -torch.inf)

    def decode(self, latents: Tensor, *, tiling: bool = False) -> Tensor:  # (B, z_channels, H / 8, W / 8)
        z = torch.tanh(latents.to(self.dtype) / RANGE) * RANGE
        out: Tensor = self.decoder(z, self._circular if tiling else NOTHING)
        return out.float() * 2 - 1


def _encoder(config: VAEConfig) -> list[nn.Module]:
    width = config.channels[0]
    layers: list[nn.Module] = [Conv2d(config.in_channels, width, 3, padding=1)]
    for level, blocks in enumerate(BLOCKS):
        if level:
            layers.append(Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [Block(width) for _ in range(blocks)]
    return [*layers, Conv2d(width, config.z_channels, 3, padding=1)]


def _decoder(config: VAEConfig) -> list[nn.Module]:
    width = config.channels[0]
    layers: list[nn.Module] = [Conv2d(config.z_channels, width, 3, padding=1), nn.ReLU()]
    for level, blocks in reversed(list(enumerate(BLOCKS))):
        layers += [Block(width) for _ in range(blocks)]
        if level:
            layers += [nn.Upsample(scale_factor=2), Conv2d(width, width, 3, padding=1, bias=False)]
    return [*layers, Conv2d(width, config.in_channels, 3, padding=1)]
