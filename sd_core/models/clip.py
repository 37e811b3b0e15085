"""CLIP's text encoder (ViT-L/14 for v1.5), under the names of `cond_stage_model.transformer.text_model.*`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sd_core.models.attention import attention
from sd_core.models.layers import Linear, running_dtype


@dataclass(frozen=True)
class CLIPConfig:
    """The defaults are v1.5's ViT-L/14."""

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

    def forward(self, ids: Tensor) -> Tensor:  # (B, T)
        out: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return out


class SelfAttention(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = Linear(config.width, config.width)
        self.k_proj = Linear(config.width, config.width)
        self.v_proj = Linear(config.width, config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        h = attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True)
        out: Tensor = self.out_proj(h)
        return out


class MLP(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        out: Tensor = self.fc2(h * torch.sigmoid(1.702 * h))  # OpenAI's quick GELU, not the exact one
        return out


class Layer(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Encoder(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        for layer in self.layers:
            x = layer(x)
        return x


class TextTransformer(nn.Module):
    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T)
        out: Tensor = self.final_layer_norm(self.encoder(self.embeddings(ids)))
        return out


class CLIPTextEncoder(nn.Module):
    """Token ids (B, 77) -> the last layer's normalized hidden states (B, 77, width).

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    @property
    def dtype(self) -> torch.dtype:
        return running_dtype(self)

    def forward(self, ids: Tensor) -> Tensor:  # (B, T), T <= max_length
        out: Tensor = self.text_model(ids)
        return out
