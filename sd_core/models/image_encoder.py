"""CLIP's image encoder (ViT-H/14 for IP-Adapter), under the names that transformers gives its weights."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sd_core.models.clip import Encoder
from sd_core.models.given import NOTHING
from sd_core.models.layers import Conv2d, Linear, name_layers, running_dtype

NUMBERS = 24
"""Numbers that an encoder holds at its peak for a token, over its width; a third of them is spare for an adapter."""


@dataclass(frozen=True)
class ImageEncoderConfig:
    """The defaults are OpenCLIP's ViT-H/14. `patch` and `side` are in pixels; images are square."""

    is_causal: ClassVar[bool] = False

    width: int = 1_280
    layers: int = 32
    heads: int = 16
    mlp_width: int = 5_120
    patch: int = 14
    side: int = 224
    embedding: int = 1_024
    has_quick_gelu: bool = False

    @property
    def tokens(self) -> int:
        """One for each patch, and the class token before them."""
        return (self.side // self.patch) ** 2 + 1


class Embeddings(nn.Module):
    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.patch_embedding = Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Embedding(config.tokens, config.width)

    def forward(self, pixels: Tensor) -> Tensor:  # (B, 3, side, side) -> (B, T, width)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        out: Tensor = torch.cat([first, patches], dim=1) + self.position_embedding.weight
        return out


class VisionTransformer(nn.Module):
    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)  # sic
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor, skip: int) -> Tensor:  # (B, 3, side, side) -> (B, T, width)
        out: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(pixels)), skip, NOTHING)
        return out


class ImageEncoder(nn.Module):
    """Pixels (B, 3, side, side), normalized as CLIP's are, to an embedding or to hidden states.

    Networks with equal keys hold equal weights. Source: Radford et al. 2021, "Learning Transferable Visual Models From
    Natural Language Supervision".
    """

    def __init__(self, config: ImageEncoderConfig, key: Hashable = None) -> None:
        super().__init__()
        self.config, self.key = config, key
        self.vision_model = VisionTransformer(config)
        self.visual_projection = Linear(config.width, config.embedding, bias=False)
        name_layers(self)

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    @property
    def device(self) -> torch.device:
        return self.visual_projection.weight.device

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    def bytes_for(self, images: int) -> int:
        """Memory that a forward holds at its peak for so many images, beyond weights."""
        return NUMBERS * images * self.config.tokens * self.config.width * self.dtype.itemsize

    def embedded(self, pixels: Tensor) -> Tensor:
        """The embedding (B, embedding) of each image, in the space that CLIP shares with texts."""
        last = self.vision_model(pixels.to(self.dtype), 0)
        out: Tensor = self.visual_projection(self.vision_model.post_layernorm(last[:, 0]))
        return out

    def hidden(self, pixels: Tensor) -> Tensor:
        """The states (B, T, width) of the last layer but one, not normalized."""
        out: Tensor = self.vision_model(pixels.to(self.dtype), 1)
        return out
