"""The autoencoder of Stable Diffusion v1.x (KL-f8), under the names of `first_stage_model.*`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.attention import attention
from sd_core.models.given import NOTHING, Given
from sd_core.models.layers import Conv2d, circular_padding, group_norm, name_layers, running_dtype, wrapped
from sd_core.models.tiles import tiled

NORM_EPS = 1e-6

TILE, OVERLAP = 64, 16
"""Latents on the side of a tile, 512 pixels with v1's autoencoder, which learned from no larger; and in a seam."""


@dataclass(frozen=True)
class VAEConfig:
    """The defaults are v1.5. `channels` holds one width a level, from full to coarsest resolution."""

    in_channels: int = 3
    z_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    scale_factor: float = 0.18215


class Autoencoder(nn.Module, ABC):
    """Pictures in [-1, 1] (B, 3, H, W) <-> latents (B, 4, H / 8, W / 8), scaled so that their deviation is about 1."""

    config: VAEConfig

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    @property
    def downscale(self) -> int:
        """How many pixels of a picture's side one latent covers: 8 for v1."""
        return 1 << (len(self.config.channels) - 1)

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    @property
    @abstractmethod
    def encodes(self) -> bool:
        """Whether it has an encoder; without one, `moments` must not be called."""

    @abstractmethod
    def moments(self, pixels: Tensor, *, tiling: bool = False) -> tuple[Tensor, Tensor]:  # (B, 3, H, W)
        """Mean and log variance of the posterior, unscaled float32, each (B, z_channels, H / 8, W / 8).

        With `tiling`, opposite borders of the pictures are neighbours; so they are in `decode`.
        """

    @abstractmethod
    def decode(self, latents: Tensor, *, tiling: bool = False) -> Tensor:  # (B, z_channels, H / 8, W / 8)
        """Float32 pictures (B, 3, H, W), about [-1, 1] and not clamped."""

    def moments_tiled(self, pixels: Tensor, *, tiling: bool = False) -> tuple[Tensor, Tensor]:  # (1, 3, H, W)
        """Nearly the same moments in less memory if a side has more than `TILE` latents: tile by tile."""
        tile, overlap = TILE * self.downscale, OVERLAP * self.downscale

        def encode(part: Tensor) -> Tensor:
            return torch.cat(self.moments(part), dim=1)

        border = _border(pixels, overlap, tiling=tiling)
        moments = tiled(encode, wrapped(pixels, border), tile, overlap, Fraction(1, self.downscale))
        rows, columns = (side // self.downscale for side in border)
        mean, logvar = _cropped(moments, rows, columns).chunk(2, dim=1)
        return mean, logvar

    def sample(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:  # (B, z_channels, H / 8, W / 8)
        """A sample of the posterior, drawn with normal noise, as scaled float32 latents."""
        return (mean + torch.exp(0.5 * logvar) * noise) * self.config.scale_factor

    def decode_tiled(self, latents: Tensor, *, tiling: bool = False) -> Tensor:  # (1, z_channels, H / 8, W / 8)
        """Nearly the same in less memory if a side has more than `TILE` latents: tile by tile."""
        border = _border(latents, OVERLAP, tiling=tiling)
        pictures = tiled(self.decode, wrapped(latents, border), TILE, OVERLAP, Fraction(self.downscale))
        rows, columns = (side * self.downscale for side in border)
        return _cropped(pictures, rows, columns)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, NORM_EPS)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, NORM_EPS)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (B, in_channels, H, W)
        h = self.conv1(F.silu(self.norm1(x)), given=given)
        out: Tensor = self.conv2(F.silu(self.norm2(h)), self.nin_shortcut(x), given)
        return out


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels of the coarsest feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, NORM_EPS)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, _given: Given) -> Tensor:  # (B, C, H, W)
        h = self.norm(x)
        # Contiguous, as fused kernels want them: (B, H * W, C).
        q, k, v = (f(h).flatten(2).transpose(1, 2).contiguous() for f in (self.q, self.k, self.v))
        h = attention(q, k, v, heads=1).transpose(1, 2).unflatten(2, x.shape[2:])
        out: Tensor = self.proj_out(h, add=x)
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        # Right and bottom only, as the model was trained.
        is_circular = given.padding.get(self.conv.name) == "circular"
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1), mode="circular" if is_circular else "constant"))
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), given=given)
        return out


class Level(nn.Module):
    """One resolution: `block.*` and, if the resolution changes after it, `downsample` or `upsample`."""

    def __init__(self, blocks: list[nn.Module], **resample: nn.Module) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        for name, module in resample.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        for module in self.block:
            x = module(x, given)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                x = getattr(self, name)(x, given)
        return x


class Mid(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x, given), given), given)
        return out


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        width = widths[0]
        for level, level_width in enumerate(widths):
            blocks: list[nn.Module] = []
            for _ in range(config.num_res_blocks):
                blocks.append(ResnetBlock(width, level_width))
                width = level_width
            resample = {"downsample": Downsample(width)} if level + 1 < len(widths) else {}
            self.down.append(Level(blocks, **resample))
        self.mid = Mid(width)
        self.norm_out = group_norm(width, NORM_EPS)
        self.conv_out = Conv2d(width, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (B, 3, H, W)
        h = self.conv_in(x, given=given)
        for level in self.down:
            h = level(h, given)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h, given))), given=given)
        return out


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.channels
        width = widths[-1]
        self.conv_in = Conv2d(config.z_channels, width, 3, padding=1)
        self.mid = Mid(width)
        levels: list[Level] = []
        for level, level_width in reversed(list(enumerate(widths))):
            blocks: list[nn.Module] = []
            for _ in range(config.num_res_blocks + 1):
                blocks.append(ResnetBlock(width, level_width))
                width = level_width
            levels.append(Level(blocks, **({"upsample": Upsample(width)} if level > 0 else {})))
        self.up = nn.ModuleList(reversed(levels))  # the checkpoint numbers them from full to coarsest resolution
        self.norm_out = group_norm(width, NORM_EPS)
        self.conv_out = Conv2d(width, config.in_channels, 3, padding=1)

    def forward(self, z: Tensor, given: Given) -> Tensor:  # (B, z_channels, H / 8, W / 8)
        h = self.mid(self.conv_in(z, given=given), given)
        for level in reversed(self.up):
            h = level(h, given)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)), given=given)
        return out


class VAE(Autoencoder):
    """v1's autoencoder.

    Source: Rombach et al. 2022, section 3.1; the layers and constants are those of CompVis' `AutoencoderKL`.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = Conv2d(config.z_channels, config.z_channels, 1)
        name_layers(self)
        self._circular = Given(padding=circular_padding(self))

    @property
    def encodes(self) -> bool:
        return True

    def moments(self, pixels: Tensor, *, tiling: bool = False) -> tuple[Tensor, Tensor]:  # (B, 3, H, W)
        given = self._circular if tiling else NOTHING
        moments = self.quant_conv(self.encoder(pixels.to(self.dtype), given)).float()
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor, *, tiling: bool = False) -> Tensor:  # (B, z_channels, H / 8, W / 8)
        z = (latents.float() / self.config.scale_factor).to(self.dtype)
        out: Tensor = self.decoder(self.post_quant_conv(z), self._circular if tiling else NOTHING)
        return out.float()


def _border(x: Tensor, overlap: int, *, tiling: bool) -> tuple[int, int]:
    """Rows and columns by which x is continued before it is cut into tiles, so that opposite borders match."""
    rows, columns = (min(overlap, side) if tiling else 0 for side in x.shape[2:])
    return rows, columns


def _cropped(x: Tensor, rows: int, columns: int) -> Tensor:  # (B, C, H, W)
    return x[..., rows : x.shape[2] - rows, columns : x.shape[3] - columns]
