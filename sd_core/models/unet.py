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
from sd_core.models.stages import Downsample, ResBlock, Stage, Upsample


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


@dataclass(frozen=True)
class Encoded:
    """The outputs of the input blocks and of the middle block, in order.

    The first `shared` have one entry per input (B), the others one per row (R), as the time embedding `emb` has.
    Whoever reads the outputs may take them off the list, so that their memory is free after their last use.
    """

    outputs: list[Tensor]
    shared: int
    emb: Tensor


class Encoder(nn.Module):
    """The way down and the middle of a UNet, which a ControlNet has too."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.channels
        first, time_dim = widths[0], widths[0] * 4
        self.time_embed = nn.Sequential(Linear(first, time_dim), nn.SiLU(), Linear(time_dim, time_dim))

        self.input_blocks = nn.ModuleList([Stage([Conv2d(config.in_channels, first, 3, padding=1)])])
        width = first
        for level, level_width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(
                    Stage([ResBlock(width, level_width, time_dim), *_transformer(config, level, level_width)])
                )
                width = level_width
            if level + 1 < len(widths):
                self.input_blocks.append(Stage([Downsample(width)]))

        self.middle_block = Stage(
            [
                ResBlock(width, width, time_dim),
                SpatialTransformer(width, config.context_dim, config.num_heads),
                ResBlock(width, width, time_dim),
            ]
        )
        next(layer for layer in self.modules() if isinstance(layer, SpatialTransformer)).expands = True

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def skip_channels(self) -> list[int]:
        """The width of each input block's output, in order."""
        config = self.config
        each = [
            [width] * (config.num_res_blocks + (level + 1 < len(config.channels)))
            for level, width in enumerate(config.channels)
        ]
        return [config.channels[0], *(width for level in each for width in level)]

    def read(self, states: Tensor, given: Given = NOTHING) -> dict[str, KeysValues]:  # (R, T, context_dim)
        """Keys and values of prompts by the name of the attention that uses them; they are the same at every step."""
        states = states.to(self.dtype)
        blocks = (module for module in self.modules() if isinstance(module, BasicTransformerBlock))
        return {block.attn2.name: block.attn2.read(states, given) for block in blocks}

    def given(self, states: Tensor, image_of_row: Tensor | None = None) -> Given:
        """What a forward is given for prompts (R, T, context_dim): prompt i belongs to input `image_of_row[i]`."""
        return Given(self.read(states), image_of_row)

    def embedded(self, timesteps: Tensor, given: Given) -> Tensor:  # (B,) -> (B, time_dim)
        """Timesteps as the residual blocks take them."""
        first, _, second = self.time_embed
        emb = timestep_embedding(timesteps, self.config.channels[0]).to(self.dtype)
        out: Tensor = second(F.silu(first(emb, given=given)), given=given)
        return out

    def encoded(self, x: Tensor, timesteps: Tensor, given: Given, hint: Tensor | None = None) -> Encoded:
        """Latents (B, in_channels, H, W), timesteps (B,) and R prompts, on the way down and through the middle.

        `hint` (B, channels[0], H, W) is added to the first output. Features that are given per row are added to the
        last output of their level, which then has one entry per row.
        """
        emb, of_layer = self.embedded(timesteps, given), given
        x = x.to(self.dtype)
        outputs: list[Tensor] = []
        shared: int | None = None
        for index, stage in enumerate([*self.input_blocks, self.middle_block]):
            x = stage(x, emb, x.shape[2:], of_layer)
            if index == 0 and hint is not None:
                x = x + hint
            has_features = given.features and index in self.level_ends
            if has_features and shared is None and not stage.expands:
                x = given.per_row(x)
            if shared is None and (stage.expands or has_features):
                emb, of_layer, shared = given.per_row(emb), given.expanded, index
            if has_features:
                x = given.with_features(x, self.level_ends.index(index))
            outputs.append(x)
        assert shared is not None  # the middle block expands, if no other does
        return Encoded(outputs, shared, emb)

    @property
    def level_ends(self) -> list[int]:
        """The index of the last input block of each level, before it is halved."""
        each = self.config.num_res_blocks + 1
        return [each * (level + 1) - 1 for level in range(len(self.config.channels))]


class UNet(Encoder):
    """Predicts the noise (or the velocity) in latents.

    Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; the layer order
    and constants are those of CompVis' `openaimodel.UNetModel`.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = config.channels
        first, time_dim, width, skips = widths[0], widths[0] * 4, widths[-1], self.skip_channels

        self.output_blocks = nn.ModuleList()
        for level, level_width in reversed(list(enumerate(widths))):
            for index in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [
                    ResBlock(width + skips.pop(), level_width, time_dim),
                    *_transformer(config, level, level_width),
                ]
                width = level_width
                if level > 0 and index == config.num_res_blocks:
                    layers.append(Upsample(width))
                self.output_blocks.append(Stage(layers))

        self.out = nn.Sequential(group_norm(first), nn.SiLU(), Conv2d(first, config.out_channels, 3, padding=1))

        name_layers(self)
        self.circular = circular_padding(self)

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

    def forward(self, x: Tensor, timesteps: Tensor, given: Given) -> Tensor:
        """Latents (B, in_channels, H, W), timesteps (B,) and R prompts -> (R, out_channels, H, W) in x's dtype.

        The output is what the checkpoint was trained to predict: eps or v. What the rows of one input share is computed
        once. Timesteps may be fractional and are embedded in float32; H and W may be any size of at least one.
        """
        return self.whole(x, timesteps, given)[0]

    def whole(self, x: Tensor, timesteps: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """`forward`, and the deep features (R, channels[0], H, W) that the outermost block receives."""
        in_dtype, encoded, of_rows = x.dtype, self.encoded(x, timesteps, given), given.expanded
        skips = encoded.outputs
        x = skips.pop()
        x = given.controlled(x, len(skips))
        for index, stage in enumerate(self.output_blocks):
            deep = x
            skip = skips.pop()
            if len(skips) < encoded.shared:
                skip = given.per_row(skip)
            skip = given.controlled(skip, len(skips))
            # The last layer of a level upsamples to the size of the skip that comes next, which need not be twice.
            size = skips[-1].shape[2:] if skips else x.shape[2:]
            if given.freeu is not None:
                x, skip = reweighed(x, skip, index // (self.config.num_res_blocks + 1), given.freeu)
            x = stage(torch.cat([x, skip], dim=1), encoded.emb, size, of_rows)
        return self._out(x, of_rows).to(in_dtype), deep

    def outermost(self, x: Tensor, timesteps: Tensor, deep: Tensor, given: Given) -> Tensor:
        """`forward` by the outermost block alone, on deep features (R, channels[0], H, W) of an earlier step.

        Source: Ma, Fang & Wang 2023, "DeepCache: Accelerating Diffusion Models for Free", branch 0.
        """
        emb = self.embedded(timesteps, given)
        skip = given.per_row(self.input_blocks[0](x.to(self.dtype), emb, x.shape[2:], given))
        emb, of_rows = given.per_row(emb), given.expanded
        skip = given.controlled(skip, 0)
        features = self.output_blocks[-1](torch.cat([deep, skip], dim=1), emb, x.shape[2:], of_rows)
        return self._out(features, of_rows).to(x.dtype)

    def _out(self, x: Tensor, given: Given) -> Tensor:  # (R, channels[0], H, W) -> (R, out_channels, H, W)
        norm, silu, conv = self.out
        out: Tensor = conv(silu(norm(x, given)), given=given)
        return out


def _transformer(config: UNetConfig, level: int, width: int) -> list[nn.Module]:
    attends = level in config.attention_levels
    return [SpatialTransformer(width, config.context_dim, config.num_heads)] if attends else []
