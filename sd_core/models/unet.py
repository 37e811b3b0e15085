"""The denoising UNet of Stable Diffusion v1.x, under the names of `model.diffusion_model.*`."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.attention import KeysValues, SpatialTransformer
from sd_core.models.layers import Conv2d, Linear, group_norm, running_dtype, timestep_embedding


@dataclass(frozen=True)
class UNetConfig:
    """The defaults are v1.5. `channels` holds one width a level, from full to coarsest resolution."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    context_dim: int = 768
    num_heads: int = 8


class ResBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            group_norm(in_channels), nn.SiLU(inplace=True), Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(time_dim, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(inplace=True),
            nn.Identity(),
            Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # (B, C, H, W), (B, time_dim)
        norm, silu, conv = self.in_layers
        h = conv(silu(norm(x)), add=self.emb_layers(emb)[:, :, None, None])
        norm, silu, _, conv = self.out_layers
        out: Tensor = conv(silu(norm(h)), add=self.skip_connection(x))
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out


@dataclass(frozen=True)
class Contexts:
    """R prompts as each of the UNet's attentions reads them; prompt i belongs to picture `rows[i]`.

    Without `rows` there is one prompt a picture, in order.
    """

    read: tuple[KeysValues, ...]
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.read[0][0])

    def spread(self, x: Tensor, count: int) -> Tensor:
        """Something of each picture, or of each prompt already, for `count` of the one or the other."""
        return x if self.rows is None or len(x) == count else x[self.rows]


class Stage(nn.ModuleList):
    """One entry of `input_blocks`, `middle_block` or `output_blocks`: its layers, each given what it takes."""

    def forward(
        self, x: Tensor, emb: Tensor, size: torch.Size, contexts: Contexts, unread: Iterator[KeysValues]
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, contexts.spread(emb, len(x)))
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, next(unread), contexts.rows if len(x) < len(contexts) else None)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Predicts the noise in latents.

    Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; the layer order
    and constants are those of CompVis' `openaimodel.UNetModel`.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        first, time_dim = widths[0], widths[0] * 4

        def transformer(level: int, width: int) -> list[nn.Module]:
            attends = level in config.attention_levels
            return [SpatialTransformer(width, config.context_dim, config.num_heads)] if attends else []

        self.time_embed = nn.Sequential(Linear(first, time_dim), nn.SiLU(), Linear(time_dim, time_dim))

        self.input_blocks = nn.ModuleList([Stage([Conv2d(config.in_channels, first, 3, padding=1)])])
        skips, width = [first], first
        for level, level_width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(
                    Stage([ResBlock(width, level_width, time_dim), *transformer(level, level_width)])
                )
                width = level_width
                skips.append(width)
            if level + 1 < len(widths):
                self.input_blocks.append(Stage([Downsample(width)]))
                skips.append(width)

        self.middle_block = Stage(
            [
                ResBlock(width, width, time_dim),
                SpatialTransformer(width, config.context_dim, config.num_heads),
                ResBlock(width, width, time_dim),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for index in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [
                    ResBlock(width + skips.pop(), level_width, time_dim),
                    *transformer(level, level_width),
                ]
                width = level_width
                if level > 0 and index == config.num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Stage(layers))

        self.out = nn.Sequential(group_norm(first), nn.SiLU(), Conv2d(first, config.out_channels, 3, padding=1))

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    def read(self, context: Tensor, rows: Tensor | None = None) -> Contexts:
        """What the attentions need of prompts (R, T, context_dim), of which prompt i belongs to picture `rows[i]`."""
        context = context.to(self.dtype)
        transformers = (module for module in self.modules() if isinstance(module, SpatialTransformer))
        return Contexts(tuple(transformer.read(context) for transformer in transformers), rows)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | Contexts) -> Tensor:
        """Latents (B, in_channels, H, W), timesteps (B,) and R prompts -> eps (R, out_channels, H, W) in x's dtype.

        The prompts are a context (B, T, context_dim), or what `read` made of one, which is the same at every step.
        What the prompts of one picture share is computed once. Timesteps may be fractional and are embedded in
        float32; H and W may be any size of at least one.
        """
        contexts = context if isinstance(context, Contexts) else self.read(context)
        unread = iter(contexts.read)
        in_dtype, dtype = x.dtype, self.dtype
        emb = self.time_embed(timestep_embedding(timesteps, self.config.channels[0]).to(dtype))
        x = x.to(dtype)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, emb, x.shape[2:], contexts, unread)
            skips.append(x)
        x = self.middle_block(x, emb, x.shape[2:], contexts, unread)
        for stage in self.output_blocks:
            skip = contexts.spread(skips.pop(), len(x))
            # The last layer of a level upsamples to the size of the skip that comes next, which need not be twice.
            size = skips[-1].shape[2:] if skips else x.shape[2:]
            x = stage(torch.cat([x, skip], dim=1), emb, size, contexts, unread)
        out: Tensor = self.out(x)
        return out.to(in_dtype)


class UNetStep(nn.Module):
    """A UNet that takes tensors alone, which is what can be compiled, and captured in a graph."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, rows: Tensor, *read: Tensor) -> Tensor:
        """`read` holds keys and values of each attention in turn. Where there are as many pictures as prompts each has
        its own, in order, and `rows` says nothing."""
        contexts = Contexts(tuple(zip(read[::2], read[1::2], strict=True)), rows)
        eps: Tensor = self.unet(latents, timesteps, contexts)
        return eps
