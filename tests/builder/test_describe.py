"""What `inspect` says of the files that jobs name beside a checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor

from builder.inspect import inspect
from sd_core.adapters.names import Names
from sd_core.errors import ModelError
from sd_core.formats.check import meta_networks
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from tests.support.adapter_files import kohya_name, targets
from tests.support.controls import control_lora, difference, prefixed, random_adapter_weights, random_controlnet
from tests.support.ip_adapters import ADAPTERS, adapter_weights, encoder_weights
from tests.support.random_weights import FULL, TINY, random_state_dict
from tests.support.reference import reference_vae
from tests.support.upscalers import random_weights as upscaler_weights

State = dict[str, Tensor]
Inspect = Callable[..., dict[str, str]]


@pytest.fixture
def inspected(tmp_path: Path) -> Inspect:
    """A function that writes tensors to a file and returns the labels and texts of its description.

    Entries of lists are labels without a text.
    """

    def write(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> dict[str, str]:
        path = tmp_path / "file.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
        lines = inspect(path)
        return {line[:16].strip() or line.strip(): line[16:] for line in lines} | {line.strip(): "" for line in lines}

    return write


@pytest.fixture(scope="module")
def weights() -> State:
    return random_state_dict(TINY)


def kohya_lora(rank: int) -> State:
    """Every module that kohya's scripts train by default, of v1.5."""
    text_encoder, unet, _ = meta_networks(FULL)
    names = Names.of(unet, text_encoder)
    tensors = {}
    for network, name in targets(names):
        shape = names.layers[network, name].get_parameter("weight").shape
        spelled = kohya_name(network, name, FULL.unet)
        tensors[f"{spelled}.lora_down.weight"] = torch.zeros(rank, *shape[1:], dtype=torch.float16)
        tensors[f"{spelled}.lora_up.weight"] = torch.zeros(shape[0], rank, *(1,) * len(shape[2:]), dtype=torch.float16)
    return tensors


def test_a_lora_has_its_base_ranks_modules_and_what_is_ignored(inspected: Inspect) -> None:
    found = inspected({**kohya_lora(2), "odd.tensor": torch.zeros(2)}, {"ss_base_model_version": "sd_v1"})
    assert found["kind"] == "a LoRA (or LyCORIS) adapter: put it into loras/"
    assert (found["base"], found["rank"]) == ("Stable Diffusion v1.x", "2")
    assert found["dtype"] == "mixed (fp16, fp32)"
    assert found["modules"] == "192 of the UNet, 72 of the text encoder"
    assert found["family"].endswith(" (264)")
    assert (found["ignored"], "odd.tensor" in found) == ("1", True)
    assert "ss_base_model_version = sd_v1" in found["metadata"]


def test_an_adapter_for_another_base_says_so(inspected: Inspect) -> None:
    found = inspected({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(8, 4)})
    assert found["base"] == "Stable Diffusion XL"


def tiny_autoencoder() -> State:
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    return AutoencoderTiny(**widths).state_dict()


def diffusers_vae() -> State:
    return reference_vae(random_state_dict(TINY, VAE_PREFIX), TINY.vae).state_dict()


def unet_weights() -> State:
    return {name.removeprefix(UNET_PREFIX): each for name, each in random_state_dict(TINY, UNET_PREFIX).items()}


KINDS: dict[str, tuple[Callable[[], State], dict[str, str]]] = {
    "embedding": (
        lambda: {"emb_params": torch.zeros(3, 768)},
        {"kind": "a textual-inversion embedding: put it into embeddings/", "vectors": "3 of width 768"},
    ),
    "upscaler": (
        upscaler_weights,
        {"kind": "an upscaler (ESRGAN): put it into upscalers/", "architecture": "4x, 2 blocks of width 8"},
    ),
    "VAE": (
        lambda: {name.removeprefix(VAE_PREFIX): each for name, each in random_state_dict(TINY, VAE_PREFIX).items()},
        {
            "kind": "a VAE alone: put it into vae/",
            "architecture": "widths 32 32 64 64, encoder and decoder, scale 0.18215",
            "missing": "none",
        },
    ),
    "diffusers' VAE": (
        diffusers_vae,
        {"kind": "a VAE in diffusers' layout: put it into vae/", "missing": "none", "unexpected": "none"},
    ),
    "TAESD": (
        tiny_autoencoder,
        {
            "kind": "a tiny autoencoder (TAESD): put it into vae/",
            "architecture": "widths 8 8 8 8, TAESD, encoder and decoder",
        },
    ),
    "ControlNet": (
        lambda: {**prefixed(random_controlnet()), "optimizer.step": torch.zeros(1)},
        {
            "kind": "a ControlNet: put it into controlnet/",
            "base": "unknown (prompts of width 128)",
            "form": "whole weights",
            "architecture": "widths 32 64 64 96, 2 blocks a level, hints of 3 channels",
            "ignored": "1",
            "optimizer.step": "",
        },
    ),
    "ControlNet that lacks a tensor": (
        lambda: {name: each for name, each in random_controlnet().items() if name != "zero_convs.1.0.bias"},
        {
            "kind": "a ControlNet: put it into controlnet/",
            "not usable": "tensors differ from the architecture's: 1 missing (zero_convs.1.0.bias)",
        },
    ),
    "differences": (
        lambda: difference(random_controlnet(), {}),
        {"form": "differences from the checkpoint's UNet", "ignored": "none"},
    ),
    "control-LoRA": (
        lambda: control_lora(unet_weights(), rank=5)[0],
        {"form": "a control-LoRA", "rank": "5", "ignored": "none"},
    ),
    "ControlNet for SDXL": (
        lambda: {
            "controlnet_cond_embedding.conv_in.weight": torch.zeros(16, 3, 3, 3),
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1280, 2048),
        },
        {"base": "Stable Diffusion XL"},
    ),
    "T2I-Adapter": (
        random_adapter_weights,
        {
            "kind": "a T2I-Adapter: put it into controlnet/",
            "form": "whole weights",
            "architecture": "widths 32 64 64 96, 2 blocks a level, hints of 3 channels",
            "ignored": "none",
        },
    ),
    "IP-Adapter": (
        lambda: {**adapter_weights(ADAPTERS["base"]), "odd": torch.zeros(1)},
        {
            "kind": "an IP-Adapter: put it into ip_adapters/",
            "architecture": "base, images of width 48",
            "modules": "16 attentions",
            "ignored": "1",
            "odd": "",
        },
    ),
    "IP-Adapter for SDXL": (
        lambda: {
            "image_proj.proj.weight": torch.zeros(8192, 1280),
            "ip_adapter.1.to_k_ip.weight": torch.zeros(640, 2048),
        },
        {"base": "Stable Diffusion XL", "not usable": "an IP-Adapter for Stable Diffusion XL, not for v1.x"},
    ),
    "image encoder": (
        lambda: {**encoder_weights(), "text_model.final_layer_norm.weight": torch.zeros(64)},
        {
            "kind": "a CLIP image encoder: put it into clip_vision/",
            "architecture": "3 layers of width 64, 32 pixels in patches of 8, embedding of width 48",
            "ignored": "1",
        },
    ),
    "SDXL": (
        lambda: {"conditioner.embedders.0.transformer.x.weight": torch.zeros(1, 1)},
        {"kind": "a Stable Diffusion XL checkpoint", "tensors": "1"},
    ),
}


@pytest.mark.parametrize(("tensors", "expected"), KINDS.values(), ids=KINDS)
def test_each_kind_is_described(inspected: Inspect, tensors: Callable[[], State], expected: dict[str, str]) -> None:
    found = inspected(tensors())
    assert found.items() >= expected.items()


def test_a_part_of_a_checkpoint_says_what_it_lacks(inspected: Inspect, weights: State) -> None:
    found = inspected({name: each for name, each in weights.items() if name.startswith(UNET_PREFIX)})
    assert found["architecture"].startswith("Stable Diffusion v1.x, 512 pixels")
    assert found["text encoder"] == "none: taken from the first checkpoint"
    assert found["vae"] == "none: taken from the first checkpoint, or from `vae`"
    assert (found["missing"], found["unexpected"]) == ("none", "none")


def test_scales_edits_and_ignored_tensors_are_counted(inspected: Inspect, weights: State) -> None:
    stem = UNET_PREFIX + "middle_block.1.proj_in"
    changed = {
        **weights,
        UNET_PREFIX + "input_blocks.0.0.weight": torch.zeros(32, 8, 3, 3),
        f"{stem}.weight": weights[f"{stem}.weight"].to(torch.float8_e5m2),
        f"{stem}.scale_weight": torch.ones(()),
        TEXT_PREFIX + "text_model.embeddings.position_ids": torch.zeros(1, 77),
        "leftover": torch.zeros(1),
    }
    found = inspected(changed)
    assert "edits images (instruct-pix2pix)" in found["architecture"]
    assert found["dtype"] == "fp32, 1 weights with scales"
    assert found["tensors"].endswith("3 extras")
    assert (found["ignored"], "leftover" in found) == ("1", True)


def test_what_is_not_recognized_is_an_error(inspected: Inspect) -> None:
    with pytest.raises(ModelError, match=r"not recognized; its 1 tensors are what\.ever"):
        inspected({"what.ever": torch.zeros(3, 3)})
