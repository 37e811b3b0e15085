"""CLIP's text encoder (ViT-L/14 for v1.5), under the names of `cond_stage_model.transformer.text_model.*`."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.attention import attention
from sd_core.models.given import NOTHING, Given
from sd_core.models.layers import LayerNorm, Linear, name_layers, running_dtype


class Layers(Protocol):
    """What the layers of CLIP's two encoders are built from. `has_quick_gelu`: OpenAI's approximation, not the exact
    GELU."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def is_causal(self) -> bool: ...
    @property
    def has_quick_gelu(self) -> bool: ...


@dataclass(frozen=True)
class CLIPConfig:
    """The defaults are v1.5's ViT-L/14."""

    is_causal: ClassVar[bool] = True
    has_quick_gelu: ClassVar[bool] = True

    vocab_size: int = 49_408
    max_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3_072


class Embeddings(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) ids or (B, T, width) vectors
        vectors = tokens if tokens.is_floating_point() else self.token_embedding(tokens)
        out: Tensor = vectors + self.position_embedding.weight[: tokens.shape[1]]
        return out


class SelfAttention(nn.Module):
    def __init__(self, config: Layers) -> None:
        super().__init__()
        self.heads, self.is_causal = config.heads, config.is_causal
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, add: Tensor, given: Given) -> Tensor:  # (B, T, width)
        q, k, v = (project(x, given=given) for project in (self.q_proj, self.k_proj, self.v_proj))
        out: Tensor = self.out_proj(attention(q, k, v, self.heads, self.is_causal), add, given)
        return out


class MLP(nn.Module):
    def __init__(self, config: Layers) -> None:
        super().__init__()
        self.has_quick_gelu = config.has_quick_gelu
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor, add: Tensor, given: Given) -> Tensor:
        h = self.fc1(x, given=given)
        h = h * torch.sigmoid(1.702 * h) if self.has_quick_gelu else F.gelu(h)
        out: Tensor = self.fc2(h, add, given)
        return out


class Layer(nn.Module):
    def __init__(self, config: Layers) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = LayerNorm(config.width)
        self.mlp = MLP(config)
        self.layer_norm2 = LayerNorm(config.width)

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (B, T, width)
        x = self.self_attn(self.layer_norm1(x, given), x, given)
        out: Tensor = self.mlp(self.layer_norm2(x, given), x, given)
        return out


class Encoder(nn.Module):
    def __init__(self, config: Layers) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor, skip: int, given: Given) -> Tensor:  # (B, T, width)
        for layer in self.layers[: len(self.layers) - skip]:
            x = layer(x, given)
        return x


class TextTransformer(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = LayerNorm(config.width)

    def forward(self, tokens: Tensor, skip: int, given: Given) -> Tensor:
        out: Tensor = self.final_layer_norm(self.encoder(self.embeddings(tokens), skip, given), given)
        return out


class CLIPTextEncoder(nn.Module):
    """Tokens (B, 77) -> normalized hidden states (B, 77, width) of the last layer, or of one before it.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        name_layers(self)

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    def forward(self, tokens: Tensor, skip: int = 0, given: Given = NOTHING) -> Tensor:
        """`tokens` are ids (B, T) or embedding vectors (B, T, width), T <= max_length; `skip` layers before the end the
        encoder stops, and the final norm follows in any case."""
        out: Tensor = self.text_model(tokens, skip, given)
        return out
