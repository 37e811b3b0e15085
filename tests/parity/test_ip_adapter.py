"""IP-Adapter beside transformers and diffusers on the same random weights, float32 on the CPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.formats.image_encoder import load_image_encoder
from sd_core.formats.ip_adapter import load_ip_adapter
from sd_core.models.given import ImageRead
from sd_core.models.ip_adapter import attention_order
from tests.support.counting import normal
from tests.support.ip_adapters import (
    ADAPTERS,
    ENCODER,
    adapter_weights,
    as_open_clip,
    encoder_weights,
    nested,
    write_adapter,
    write_encoder,
)
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference_ip_adapters import ip_adapted_unet, reference_image_encoder

CPU = torch.device("cpu")
TOLERANCE = 1e-4


def difference(ours: Tensor, reference: Tensor) -> float:
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize("file", ["transformers", "OpenCLIP", "quick GELU"])
def test_the_image_encoder(tmp_path: Path, file: str) -> None:
    config = replace(ENCODER, width=768, heads=12, has_quick_gelu=True) if file == "quick GELU" else ENCODER
    weights = encoder_weights(config)
    save_file(as_open_clip(weights) if file == "OpenCLIP" else weights, tmp_path / "encoder.safetensors")
    ours = load_image_encoder(tmp_path / "encoder.safetensors", CPU, torch.float32)
    assert ours.config == config
    pixels = normal(2, 3, 32, 32)
    theirs = reference_image_encoder(weights, config)(pixels, output_hidden_states=True)
    assert difference(ours.embedded(pixels), theirs.image_embeds) <= TOLERANCE
    assert difference(ours.hidden(pixels), theirs.hidden_states[-2]) <= TOLERANCE
    assert difference(theirs.hidden_states[-1], theirs.hidden_states[-2]) > 100 * TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize(("layout", "suffix"), [("base", ".bin"), ("plus", ".safetensors"), ("full", ".bin")])
def test_tokens_and_what_the_unet_makes_of_them(tmp_path: Path, layout: str, suffix: str) -> None:
    """diffusers counts the attentions of its own UNet, which proves their order."""
    write_encoder(tmp_path / "encoder.safetensors")
    write_adapter(tmp_path / f"adapter{suffix}", layout)
    encoder = load_image_encoder(tmp_path / "encoder.safetensors", CPU, torch.float32)
    adapter = load_ip_adapter(tmp_path / f"adapter{suffix}", CPU, torch.float32)
    assert adapter.config == ADAPTERS[layout]
    weights = random_state_dict(TINY)
    reference = reference_image_encoder(encoder_weights(), ENCODER)
    reference_unet = ip_adapted_unet(weights, TINY.unet, [nested(adapter_weights(ADAPTERS[layout]))], 0.6)

    pixels, states, latents = normal(2, 3, 32, 32, seed=1), normal(2, 7, TINY.unet.context_dim), normal(2, 4, 8, 8)
    times = torch.tensor([981.0, 3.0])
    output = reference(pixels, output_hidden_states=True)
    embeds = output.image_embeds if layout == "base" else output.hidden_states[-2]
    unet = tiny_networks(weights)[1]
    tokens = adapter.tokens(encoder, pixels)
    projected = reference_unet.encoder_hid_proj.image_projection_layers[0](embeds)
    assert difference(tokens, projected) <= TOLERANCE

    expected = reference_unet(latents, times, states, added_cond_kwargs={"image_embeds": [embeds[:, None]]}).sample
    read = adapter.read(tokens, attention_order(unet))
    given = unet.given(states)
    whole = replace(given, images={name: [ImageRead(keys, 0.6 * values)] for name, (keys, values) in read.items()})
    assert difference(unet(latents, times, whole), expected) <= TOLERANCE
    plain = unet(latents, times, given)
    assert difference(plain, expected) > 100 * TOLERANCE
    one = {name: [ImageRead(keys[1:], 0.6 * values[1:], torch.tensor([1]))] for name, (keys, values) in read.items()}
    mixed = unet(latents, times, replace(given, images=one))
    assert difference(mixed[1:], expected[1:]) <= TOLERANCE
    assert torch.equal(mixed[0], plain[0]), "rows without images stay as they are"


@torch.inference_mode()
@pytest.mark.parametrize("layout", ADAPTERS)
def test_the_tokens_of_no_image(tmp_path: Path, layout: str) -> None:
    write_encoder(tmp_path / "encoder.safetensors")
    write_adapter(tmp_path / "adapter.bin", layout)
    encoder = load_image_encoder(tmp_path / "encoder.safetensors", CPU, torch.float32)
    adapter = load_ip_adapter(tmp_path / "adapter.bin", CPU, torch.float32)
    zeros = reference_image_encoder(encoder_weights(), ENCODER)(torch.zeros(1, 3, 32, 32), output_hidden_states=True)
    states = torch.zeros(1, ENCODER.embedding) if layout == "base" else zeros.hidden_states[-2]
    assert difference(adapter.no_tokens(encoder), adapter.image_proj(states)) <= TOLERANCE
