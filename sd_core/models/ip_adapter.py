"""IP-Adapter: what turns an image into tokens beside a prompt's, and what a UNet's attentions read of them.

Source: Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models"; names
are those of its authors' files.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sd_core.models.attention import BasicTransformerBlock, CrossAttention, attention
from sd_core.models.given import KeysValues
from sd_core.models.image_encoder import ImageEncoder, ImageEncoderConfig
from sd_core.models.layers import Linear, running_dtype
from sd_core.models.unet import UNet


@dataclass(frozen=True)
class ResamplerConfig:
    """The defaults are those of the adapters "plus" and "plus face" for v1.5."""

    width: int = 768
    depth: int = 4
    heads: int = 12
    inner: int = 768
    mlp_width: int = 3_072


@dataclass(frozen=True)
class IPAdapterConfig:
    """The defaults are the base adapter for v1.5.

    `layout` is "base" (tokens from an image's embedding), "plus" (a resampler of its hidden states) or "full" (a
    layer over its hidden states). `image_width` is that of the embedding, or of the hidden states. `attentions` are
    the widths of the UNet's attentions to prompts, in the order of `attention_order`.
    """

    layout: str = "base"
    tokens: int = 4
    context_dim: int = 768
    image_width: int = 1_024
    attentions: tuple[int, ...] = (320,) * 2 + (640,) * 2 + (1280,) * 5 + (640,) * 3 + (320,) * 3 + (1280,)
    resampler: ResamplerConfig = ResamplerConfig()

    @property
    def reads_hidden(self) -> bool:
        """Whether tokens are made from the encoder's hidden states, not from its embedding."""
        return self.layout != "base"

    def fits(self, encoder: ImageEncoderConfig) -> bool:
        """Whether this encoder's answers have the width that the adapter reads."""
        return self.image_width == (encoder.width if self.reads_hidden else encoder.embedding)


class ImageProjection(nn.Module):
    """An embedding (B, image_width) -> tokens (B, T, context_dim)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.proj = Linear(config.image_width, config.tokens * config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(embedding).unflatten(1, (self.tokens, -1)))
        return out


class FullProjection(nn.Module):
    """Hidden states (B, T, image_width) -> as many tokens (B, T, context_dim)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width = config.image_width
        self.proj = nn.Sequential(
            Linear(width, width), nn.GELU(), Linear(width, config.context_dim), nn.LayerNorm(config.context_dim)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.proj(hidden)
        return out


class PerceiverAttention(nn.Module):
    """Attention of latents to an image's states and to themselves."""

    def __init__(self, config: ResamplerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.to_q = Linear(config.width, config.inner, bias=False)
        self.to_kv = Linear(config.width, 2 * config.inner, bias=False)
        self.to_out = Linear(config.inner, config.width, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:  # (B, S, width), (B, T, width) -> (B, T, width)
        normed = self.norm2(latents)
        keys, values = self.to_kv(torch.cat([self.norm1(x), normed], dim=1)).chunk(2, dim=-1)
        out: Tensor = self.to_out(attention(self.to_q(normed), keys, values, self.heads), latents)
        return out


class Resampler(nn.Module):
    """Hidden states (B, S, image_width) -> a fixed number of tokens (B, T, context_dim)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        own = config.resampler
        self.latents = nn.Parameter(torch.empty(1, config.tokens, own.width))
        self.proj_in = Linear(config.image_width, own.width)
        self.proj_out = Linear(own.width, config.context_dim)
        self.norm_out = nn.LayerNorm(config.context_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(own),
                    nn.Sequential(
                        nn.LayerNorm(own.width),
                        Linear(own.width, own.mlp_width, bias=False),
                        nn.GELU(),
                        Linear(own.mlp_width, own.width, bias=False),
                    ),
                ]
            )
            for _ in range(own.depth)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        x, latents = self.proj_in(hidden), self.latents.expand(len(hidden), -1, -1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            attend, feed_forward = layer
            latents = attend(x, latents)
            latents = feed_forward(latents) + latents
        out: Tensor = self.norm_out(self.proj_out(latents))
        return out


class ImageAttention(nn.Module):
    """What one of a UNet's attentions reads of an image's tokens."""

    def __init__(self, context_dim: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = Linear(context_dim, width, bias=False)
        self.to_v_ip = Linear(context_dim, width, bias=False)

    def forward(self, tokens: Tensor) -> KeysValues:  # (B, T, context_dim) -> (B, T, width) each
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


_PROJECTIONS = {"base": ImageProjection, "full": FullProjection, "plus": Resampler}


class IPAdapter(nn.Module):
    """The two parts of an adapter. Adapters with equal keys hold equal weights."""

    def __init__(self, config: IPAdapterConfig, key: Hashable = None) -> None:
        super().__init__()
        self.config, self.key = config, key
        self.image_proj = _PROJECTIONS[config.layout](config)
        # Files count all attentions of diffusers' UNet: those to prompts are the odd ones.
        self.ip_adapter = nn.ModuleDict(
            {
                str(2 * index + 1): ImageAttention(config.context_dim, width)
                for index, width in enumerate(config.attentions)
            }
        )

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    def forward(self, states: Tensor) -> Tensor:
        """Tokens (B, T, context_dim) of images' embeddings (B, image_width) or hidden states (B, S, image_width)."""
        out: Tensor = self.image_proj(states.to(self.dtype))
        return out

    def read(self, tokens: Tensor, names: Sequence[str]) -> dict[str, KeysValues]:  # (B, T, context_dim)
        """Keys and values of tokens by the name of the attention; `names` are in the order of `attention_order`."""
        return {name: layer(tokens) for name, layer in zip(names, self.ip_adapter.values(), strict=True)}


@dataclass(frozen=True, eq=False)
class ImageTokenizer:
    """An image encoder and an adapter that reads what it makes."""

    encoder: ImageEncoder
    adapter: IPAdapter

    @property
    def key(self) -> Hashable:
        return self.encoder.key, self.adapter.key

    def bytes_for(self, images: int) -> int:
        """Memory that a forward holds at its peak for so many images, beyond weights."""
        return self.encoder.bytes_for(images)

    def tokens(self, pixels: Tensor) -> Tensor:
        """The tokens (B, T, context_dim) of images (B, 3, side, side)."""
        reads_hidden = self.adapter.config.reads_hidden
        out: Tensor = self.adapter(self.encoder.hidden(pixels) if reads_hidden else self.encoder.embedded(pixels))
        return out

    def no_tokens(self) -> Tensor:
        """The tokens (1, T, context_dim) of no image: of a zero embedding, or of an image of zeros."""
        config, side = self.adapter.config, self.encoder.config.side
        if config.reads_hidden:
            return self.tokens(torch.zeros(1, 3, side, side, device=self.encoder.device))
        out: Tensor = self.adapter(torch.zeros(1, config.image_width, device=self.encoder.device))
        return out


def attention_order(unet: UNet) -> list[str]:
    """The names of a UNet's attentions to prompts in the order of adapters' files: down, up, then the middle."""
    return [attention.name for attention in _attentions(unet)]


def attention_widths(unet: UNet) -> tuple[int, ...]:
    """The width of what each of them reads, in the same order."""
    return tuple(attention.to_k.out_features for attention in _attentions(unet))


def _attentions(unet: UNet) -> list[CrossAttention]:
    stages = [*unet.input_blocks, *unet.output_blocks, unet.middle_block]
    modules = [module for stage in stages for module in stage.modules()]
    return [module.attn2 for module in modules if isinstance(module, BasicTransformerBlock)]
