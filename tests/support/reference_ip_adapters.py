"""transformers' image encoder and diffusers' IP-Adapter with given weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sd_core.models.image_encoder import ImageEncoderConfig
from sd_core.models.unet import UNetConfig
from tests.support.reference import clip_sizes, reference_unet

Adapter = Mapping[str, Mapping[str, Tensor]]
"""Weights as the authors' `.bin` files hold them: `image_proj` and `ip_adapter`."""


def reference_image_encoder(weights: Mapping[str, Tensor], config: ImageEncoderConfig) -> CLIPVisionModelWithProjection:
    """transformers' CLIP image encoder; its parameters are the given tensors themselves."""
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            **clip_sizes(config),
            projection_dim=config.embedding,
            image_size=config.side,
            patch_size=config.patch,
            hidden_act="quick_gelu" if config.has_quick_gelu else "gelu",
        )
    )
    encoder.load_state_dict(dict(weights), assign=True)
    return encoder.requires_grad_(False).eval()


def ip_adapted_unet(
    weights: Mapping[str, Tensor], config: UNetConfig, adapters: Sequence[Adapter], scale: float
) -> UNet2DConditionModel:
    """diffusers' UNet with IP-Adapters, each of which acts with this scale."""
    prefix = "model.diffusion_model."
    unet = reference_unet({name: each.clone() for name, each in weights.items() if name.startswith(prefix)}, config)
    unet._load_ip_adapter_weights([_copied(each) for each in adapters])
    for processor in unet.attn_processors.values():
        if isinstance(processor, IPAdapterAttnProcessor2_0):
            processor.scale = [scale] * len(adapters)
    return unet


def add_ip_adapters(pipe: Any, encoder: Any, adapters: Sequence[Adapter]) -> None:
    """Attach IP-Adapters and their image encoder to a pipeline of diffusers."""
    pipe.register_modules(image_encoder=encoder)
    count = len(adapters)
    pipe.load_ip_adapter([_copied(each) for each in adapters], subfolder=[""] * count, weight_name=[""] * count)


def _copied(adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    return {part: dict(weights) for part, weights in adapter.items()}
