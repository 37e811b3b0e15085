"""diffusers' and transformers' networks with the weights of a v1.x checkpoint, for comparisons and measurements.

The names are mapped by diffusers' own converters, because a table of ours could be wrong in the same way as the core.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_controlnet_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sd_core.formats.detect import Architecture
from sd_core.formats.keys import TEXT_PREFIX
from sd_core.models.clip import CLIPConfig
from sd_core.models.controlnet import ControlNetConfig
from sd_core.models.image_encoder import ImageEncoderConfig
from sd_core.models.unet import UNetConfig
from sd_core.models.vae import VAEConfig

V1_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def meta_reference_unet(config: UNetConfig) -> UNet2DConditionModel:
    """diffusers' UNet with parameters on the meta device."""
    attends = [level in config.attention_levels for level in range(len(config.channels))]
    down = tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends)
    up = tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends))
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64,  # pipelines require it, although each call passes its size
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            down_block_types=down,
            up_block_types=up,
            cross_attention_dim=config.context_dim,
            attention_head_dim=config.num_heads,  # in diffusers' v1 files this is the number of heads
        )


def reference_unet(state_dict: Mapping[str, Tensor], config: UNetConfig) -> UNet2DConditionModel:
    """diffusers' UNet; its parameters are the given tensors themselves."""
    unet = meta_reference_unet(config)
    converted = convert_ldm_unet_checkpoint(dict(state_dict), dict(unet.config))
    unet.load_state_dict(converted, assign=True)
    return unet.requires_grad_(False).eval()


def reference_controlnet(state_dict: Mapping[str, Tensor], config: ControlNetConfig, **options: Any) -> ControlNetModel:
    """diffusers' ControlNet; its parameters are the given tensors themselves."""
    unet = config.unet
    down = tuple(
        "CrossAttnDownBlock2D" if level in unet.attention_levels else "DownBlock2D"
        for level in range(len(unet.channels))
    )
    with torch.device("meta"):
        controlnet = ControlNetModel(
            in_channels=unet.in_channels,
            conditioning_channels=config.hint_channels,
            block_out_channels=unet.channels,
            layers_per_block=unet.num_res_blocks,
            down_block_types=down,
            cross_attention_dim=unet.context_dim,
            attention_head_dim=unet.num_heads,
            conditioning_embedding_out_channels=config.hint_widths[::2],
            **options,
        )
    converted = convert_controlnet_checkpoint(dict(state_dict), dict(controlnet.config))
    controlnet.load_state_dict(converted, assign=True)
    return controlnet.requires_grad_(False).eval()


def reference_vae(state_dict: Mapping[str, Tensor], config: VAEConfig) -> AutoencoderKL:
    """diffusers' autoencoder; its parameters are the given tensors themselves, reshaped if necessary."""
    levels = len(config.channels)
    with torch.device("meta"):
        vae = AutoencoderKL(
            in_channels=config.in_channels,
            out_channels=config.in_channels,
            latent_channels=config.z_channels,
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            scaling_factor=config.scale_factor,
        )
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(state_dict), dict(vae.config)), assign=True)
    return vae.requires_grad_(False).eval()


def reference_text_encoder(state_dict: Mapping[str, Tensor], config: CLIPConfig) -> CLIPTextModel:
    """transformers' CLIP text model; its parameters are the given tensors themselves."""
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            **clip_sizes(config),
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_length,
            projection_dim=config.width,
            hidden_act="quick_gelu",
            bos_token_id=config.vocab_size - 2,
            eos_token_id=config.vocab_size - 1,
            pad_token_id=config.vocab_size - 1,
        )
    )
    prefix = f"{TEXT_PREFIX}text_model."
    weights = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    text_encoder.load_state_dict(weights, assign=True)
    return text_encoder.requires_grad_(False).eval()


def clip_sizes(config: CLIPConfig | ImageEncoderConfig) -> dict[str, int]:
    """What transformers calls the sizes of one of CLIP's transformers."""
    return {
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
    }


def reference_tokenizer(directory: Path) -> CLIPTokenizer:
    """transformers' CLIP tokenizer of the `vocab.json` and `merges.txt` in a directory."""
    return CLIPTokenizer(
        str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=CLIPConfig.max_length
    )


def reference_pipeline(
    state_dict: Mapping[str, Tensor],
    architecture: Architecture,
    tokenizer_dir: Path,
    scheduler: Any = None,
    pipeline: type = StableDiffusionPipeline,
    **networks: Any,
) -> Any:
    """A diffusers pipeline (text-to-image, or the class given) of these weights, without a safety checker.

    `networks` are those that the class takes besides. The default scheduler is v1.5's PNDM. Progress bars are off.
    """
    if scheduler is None:
        scheduler = PNDMScheduler(**V1_SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    pipe = pipeline(
        vae=reference_vae(state_dict, architecture.vae),
        text_encoder=reference_text_encoder(state_dict, architecture.text),
        tokenizer=reference_tokenizer(tokenizer_dir),
        unet=reference_unet(state_dict, architecture.unet),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **networks,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
