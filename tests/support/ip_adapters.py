"""Small random image encoders and IP-Adapters, and their files in the layouts that are read."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sd_core.models.image_encoder import ImageEncoder, ImageEncoderConfig
from sd_core.models.ip_adapter import IPAdapter, IPAdapterConfig, ResamplerConfig
from tests.support.random_weights import TINY

Network = TypeVar("Network", bound=nn.Module)

ENCODER = ImageEncoderConfig(width=64, layers=3, heads=1, mlp_width=128, patch=8, side=32, embedding=48)

# Of TINY's UNet, as diffusers counts them: two a level on the way down, three on the way up, then the middle.
ATTENTIONS = (32, 32, 64, 64, 64, 64) + (64,) * 3 + (64,) * 3 + (32,) * 3 + (96,)
_SHARED: dict[str, Any] = {"context_dim": TINY.unet.context_dim, "attentions": ATTENTIONS}
ADAPTERS = {
    "base": IPAdapterConfig("base", 4, image_width=ENCODER.embedding, **_SHARED),
    "plus": IPAdapterConfig(
        "plus",
        5,
        image_width=ENCODER.width,
        resampler=ResamplerConfig(width=48, depth=4, heads=2, inner=128, mlp_width=192),
        **_SHARED,
    ),
    "full": IPAdapterConfig("full", 0, image_width=ENCODER.width, **_SHARED),
}
"""An adapter of each layout for `TINY` and `ENCODER`."""


def random_weights(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Weights by name that keep the size of what a layer receives, with biases and norms that matter."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, each in network.state_dict().items():
        values = torch.randn(each.shape, generator=generator)
        if each.dim() >= 2 and "embedding" not in name.rsplit(".", 2)[-2] and name != "image_proj.latents":
            values *= 1.5 / each.shape[1:].numel() ** 0.5
        elif "norm" in name or "layrnorm" in name or each.dim() < 2:
            values = 0.2 * values + (name.endswith("weight") and each.dim() == 1)
        weights[name] = values
    return weights


def random_network(network: Network) -> Network:
    """The network with random weights, in evaluation mode."""
    network.load_state_dict(random_weights(network))
    return network.requires_grad_(False).eval()


def encoder_weights(config: ImageEncoderConfig = ENCODER, seed: int = 0) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = ImageEncoder(config)
    return random_weights(network, seed)


def adapter_weights(config: IPAdapterConfig, seed: int = 0) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = IPAdapter(config)
    return random_weights(network, seed)


def nested(weights: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An adapter's weights as its authors' `.bin` files hold them."""
    return {
        part: {name.removeprefix(f"{part}."): each for name, each in weights.items() if name.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }


def write_encoder(path: Path, config: ImageEncoderConfig = ENCODER, seed: int = 0) -> None:
    save_file(encoder_weights(config, seed), path)


def write_adapter(path: Path, layout: str = "base", seed: int = 0, **changes: Any) -> None:
    """An adapter of `ADAPTERS`, with changes of its architecture: a nested `.bin`, or a flat `.safetensors`."""
    weights = adapter_weights(replace(ADAPTERS[layout], **changes), seed)
    if path.suffix == ".bin":
        torch.save(nested(weights), path)
    else:
        save_file(weights, path)


_OPEN_CLIP = (
    ("vision_model.embeddings.class_embedding", "class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("vision_model.embeddings.patch_embedding.", "conv1."),
    ("vision_model.pre_layrnorm.", "ln_pre."),
    ("vision_model.post_layernorm.", "ln_post."),
    ("vision_model.encoder.layers.", "transformer.resblocks."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


def as_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights in OpenCLIP's layout, beside tensors of its text encoder."""
    named: dict[str, Tensor] = {"positional_embedding": torch.zeros(3, 4), "logit_scale": torch.zeros(())}
    for name, each in weights.items():
        if (projection := re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name)) is not None:
            if projection[2] == "q":
                parts = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                layer = projection[1].replace("vision_model.encoder.layers.", "visual.transformer.resblocks.")
                named[f"{layer}.attn.in_proj_{projection[3]}"] = torch.cat(parts)
            continue
        if name == "visual_projection.weight":
            named["visual.proj"] = each.t().contiguous()
            continue
        for ours, theirs in _OPEN_CLIP:
            name = name.replace(ours, theirs)
        named[f"visual.{name}"] = each
    return named
