"""The denoising UNet of Stable Diffusion v1.x, under the names of `model.diffusion_model.*`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.attention import BasicTransformerBlock, SpatialTransformer
from sd_core.models.freeu import reweighed
from sd_core.models.given import NOTHING, Given, KeysValues
from sd_core.models.layers import (
    Conv2d,
    Linear,
    circular_padding,
    group_norm,
    name_layers,
    running_dtype,
    timestep_embedding,
)


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

    def forward(self, x: Tensor, emb: Tensor, given: Given) -> Tensor:  # (B, C, H, W), (B, time_dim)
        silu, linear = self.emb_layers
        shift = linear(silu(emb), given=given)[:, :, None, None]
        norm, silu, conv = self.in_layers
        h = conv(silu(norm(x, given)), shift, given)
        norm, silu, _, conv = self.out_layers
        skip = self.skip_connection
        out: Tensor = conv(silu(norm(h, given)), skip(x, given=given) if isinstance(skip, Conv2d) else x, given)
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        out: Tensor = self.op(x, given=given)
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size, given: Given) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"), given=given)
        return out


class Stage(nn.ModuleList):
    """One entry of `input_blocks`, `middle_block` or `output_blocks`: its layers, each with the inputs it takes."""

    def forward(self, x: Tensor, emb: Tensor, size: torch.Size, given: Given) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, given)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, given)
                if layer.expands:
                    emb, given = given.per_row(emb), given.expanded
            elif isinstance(layer, Upsample):
                x = layer(x, size, given)
            elif isinstance(layer, Conv2d):
                x = layer(x, given=given)
            else:
                x = layer(x, given)
        return x


class UNet(nn.Module):
    """Predicts the noise (or the velocity) in latents.

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

        self._first_expanded = self._mark_first_transformer()
        name_layers(self)
        self.circular = circular_padding(self)

    def _mark_first_transformer(self) -> int:
        """Mark the transformer that expands; the index of the first stage whose output has one entry per row."""
        stages = [*self.input_blocks, self.middle_block]
        index = next(
            index for index, stage in enumerate(stages) if any(isinstance(layer, SpatialTransformer) for layer in stage)
        )
        next(layer for layer in stages[index] if isinstance(layer, SpatialTransformer)).expands = True
        return index

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def middle_attention(self) -> str:
        """The name of the self-attention of the middle block."""
        blocks = (module for module in self.middle_block.modules() if isinstance(module, BasicTransformerBlock))
        return next(blocks).attn1.name

    @property
    def finest_attentions(self) -> list[str]:
        """The names of the self-attentions over the most tokens."""
        level = min(self.config.attention_levels, default=len(self.config.channels))
        each = self.config.num_res_blocks + 1
        stages = [*self.input_blocks[each * level : each * (level + 1)]]
        stages += self.output_blocks[len(self.output_blocks) - each * (level + 1) :][:each]
        return [
            module.attn1.name
            for stage in stages
            for module in stage.modules()
            if isinstance(module, BasicTransformerBlock)
        ]

    def read(self, states: Tensor, given: Given = NOTHING) -> dict[str, KeysValues]:  # (R, T, context_dim)
        """Keys and values of prompts by the name of the attention that uses them; they are the same at every step."""
        states = states.to(self.dtype)
        blocks = (module for module in self.modules() if isinstance(module, BasicTransformerBlock))
        return {block.attn2.name: block.attn2.read(states, given) for block in blocks}

    def given(self, states: Tensor, image_of_row: Tensor | None = None) -> Given:
        """What a forward is given for prompts (R, T, context_dim): prompt i belongs to input `image_of_row[i]`."""
        return Given(self.read(states), image_of_row)

    def forward(self, x: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        """Latents (B, in_channels, H, W), timesteps (B,) and R prompts -> (R, out_channels, H, W) in x's dtype.

        The output is what the checkpoint was trained to predict: eps or v. What the rows of one input share is computed
        once. Timesteps may be fractional and are embedded in float32; H and W may be any size of at least one.
        """
        return self.whole(x, timesteps, given)[0]

    def whole(self, x: Tensor, timesteps: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """`forward`, and the deep features (R, channels[0], H, W) that the outermost block receives."""
        in_dtype = x.dtype
        emb, of_layer = self._embedded(timesteps, given), given
        x = x.to(self.dtype)
        skips: list[Tensor] = []
        for index, stage in enumerate([*self.input_blocks, self.middle_block]):
            x = stage(x, emb, x.shape[2:], of_layer)
            skips.append(x)
            if index == self._first_expanded:
                emb, of_layer = given.per_row(emb), given.expanded
        skips.pop()  # the middle block's output is no skip connection
        for index, stage in enumerate(self.output_blocks):
            deep = x
            skip = skips.pop() if len(skips) > self._first_expanded else given.per_row(skips.pop())
            # The last layer of a level upsamples to the size of the skip that comes next, which need not be twice.
            size = skips[-1].shape[2:] if skips else x.shape[2:]
            if given.freeu is not None:
                x, skip = reweighed(x, skip, index // (self.config.num_res_blocks + 1), given.freeu)
            x = stage(torch.cat([x, skip], dim=1), emb, size, of_layer)
        return self._out(x, of_layer).to(in_dtype), deep

    def outermost(self, x: Tensor, timesteps: Tensor, deep: Tensor, given: Given) -> Tensor:
        """`forward` by the outermost block alone, on deep features (R, channels[0], H, W) of an earlier step.

        Source: Ma, Fang & Wang 2023, "DeepCache: Accelerating Diffusion Models for Free", branch 0.
        """
        emb = self._embedded(timesteps, given)
        skip = given.per_row(self.input_blocks[0](x.to(self.dtype), emb, x.shape[2:], given))
        emb, of_rows = given.per_row(emb), given.expanded
        features = self.output_blocks[-1](torch.cat([deep, skip], dim=1), emb, x.shape[2:], of_rows)
        return self._out(features, of_rows).to(x.dtype)

    def _embedded(self, timesteps: Tensor, given: Given) -> Tensor:  # (B,) -> (B, time_dim)
        first, _, second = self.time_embed
        emb = timestep_embedding(timesteps, self.config.channels[0]).to(self.dtype)
        out: Tensor = second(F.silu(first(emb, given=given)), given=given)
        return out

    def _out(self, x: Tensor, given: Given) -> Tensor:  # (R, channels[0], H, W) -> (R, out_channels, H, W)
        norm, silu, conv = self.out
        out: Tensor = conv(silu(norm(x, given)), given=given)
        return out


class UNetStep(nn.Module):
    """A UNet that takes tensors alone, as compilation and graph capture need them."""

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
