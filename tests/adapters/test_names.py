"""Every layer is found under every name that files have for it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sd_core.adapters.apply import Adapter
from sd_core.adapters.delta import LowRank
from sd_core.adapters.names import TEXT, UNET, Names, diffusers_name
from sd_core.adapters.parts import found_in, split
from sd_core.formats.check import meta_networks
from sd_core.formats.detect import Architecture
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from tests.support.adapter_files import kohya_name, random_lora, targets
from tests.support.random_weights import FULL, SMALLEST, TINY
from tests.support.reference import meta_reference_unet

ARCHITECTURES = {"v1.5": FULL, "tiny": TINY, "one residual block a level": SMALLEST}


def names_of(architecture: Architecture) -> Names:
    text_encoder, unet, _ = meta_networks(architecture)
    return Names.of(unet, text_encoder)


@pytest.fixture(scope="module")
def v15() -> Names:
    return names_of(FULL)


def test_v15_has_as_many_modules_as_kohya_trains(v15: Names) -> None:
    """192 of the UNet and 72 of the text encoder; with LoCon 278 of the UNet."""
    networks = [network for network, _ in targets(v15)]
    assert (networks.count(UNET), networks.count(TEXT)) == (192, 72)
    # kohya's scripts leave out what lies outside of the blocks.
    outside = ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2")
    locon = [
        name
        for (network, name), layer in v15.layers.items()
        if network == UNET and isinstance(layer, nn.Linear | nn.Conv2d) and name not in outside
    ]
    assert len(locon) == 278


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_diffusers_has_the_same_layers(architecture: str) -> None:
    """Its names, and the shapes of the weights, beside diffusers' own UNet."""
    config = ARCHITECTURES[architecture].unet
    names = names_of(ARCHITECTURES[architecture])
    theirs = {
        name: module.weight.shape
        for name, module in meta_reference_unet(config).named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm)
    }
    ours = {
        diffusers_name(name, config): layer.get_parameter("weight").shape
        for (network, name), layer in names.layers.items()
        if network == UNET
    }
    assert ours == theirs


UNET_SPELLINGS: dict[str, Callable[[str, str], str]] = {
    "kohya": lambda ldm, diffusers: "lora_unet_" + diffusers.replace(".", "_"),
    "kohya, CompVis' names": lambda ldm, diffusers: "lora_unet_" + ldm.replace(".", "_"),
    "SimpleTuner": lambda ldm, diffusers: "lycoris_" + diffusers.replace(".", "_"),
    "kohya's OFT": lambda ldm, diffusers: "oft_unet_" + diffusers.replace(".", "_"),
    "OneTrainer": lambda ldm, diffusers: "lora_unet." + diffusers,
    "OneTrainer, common standard": lambda ldm, diffusers: "unet." + ldm,
    "diffusers": lambda ldm, diffusers: "unet." + diffusers,
    "diffusers' UNet alone": lambda ldm, diffusers: diffusers,
    "PEFT": lambda ldm, diffusers: "base_model.model." + diffusers,
    "ComfyUI": lambda ldm, diffusers: "diffusion_model." + ldm,
    "a checkpoint": lambda ldm, diffusers: "model.diffusion_model." + ldm,
}
TEXT_SPELLINGS: dict[str, Callable[[str], str]] = {
    "kohya": lambda name: "lora_te_" + name.replace(".", "_"),
    "kohya's of two encoders": lambda name: "lora_te1_" + name.replace(".", "_"),
    "OneTrainer, common standard": lambda name: "clip_l." + name,
    "diffusers": lambda name: "text_encoder." + name,
    "newer transformers": lambda name: "text_encoder." + name.removeprefix("text_model."),
    "PEFT": lambda name: "base_model.model." + name,
    "ComfyUI": lambda name: "text_encoders.clip_l.transformer." + name,
}


@pytest.mark.parametrize("spelling", UNET_SPELLINGS)
@pytest.mark.parametrize("architecture", ["v1.5", "one residual block a level"])
def test_each_layer_of_a_unet_is_found(architecture: str, spelling: str) -> None:
    config = ARCHITECTURES[architecture].unet
    names = names_of(ARCHITECTURES[architecture])
    for network, name in names.layers:
        if network == UNET:
            assert names.find(UNET_SPELLINGS[spelling](name, diffusers_name(name, config))) == (UNET, name)


@pytest.mark.parametrize("spelling", TEXT_SPELLINGS)
def test_each_layer_of_a_text_encoder_is_found(v15: Names, spelling: str) -> None:
    for network, name in v15.layers:
        if network == TEXT:
            assert v15.find(TEXT_SPELLINGS[spelling](name)) == (TEXT, name)


@pytest.mark.parametrize("name", ["", "lora_unet_", "lora_te_", "unet.", "x", "lora_unet_conv_in_", "text_projection"])
def test_other_names_are_of_no_layer(v15: Names, name: str) -> None:
    assert v15.find(name) is None


def test_no_name_means_two_layers(v15: Names) -> None:
    """Not even without dots, where "_" stands for both."""
    spelled = {kohya_name(network, name, FULL.unet) for network, name in v15.layers}
    assert len(spelled) == len(v15.layers)
    for network, name in v15.layers:
        assert v15.find(kohya_name(network, name, FULL.unet)) == (network, name)


@pytest.mark.parametrize(
    ("name", "layer", "part"),
    [
        ("a.b.lora_down.weight", "a.b", "down"),
        ("a.b.lora_A.weight", "a.b", "down"),
        ("a.b.lora_A.default.weight", "a.b", "down"),
        ("a.b.lora_B.my_adapter.weight", "a.b", "up"),
        ("a.b.lora_B.bias", "a.b", "up_bias"),
        ("a.b.lora_magnitude_vector", "a.b", "magnitude"),
        ("a.b.lora_magnitude_vector.default.weight", "a.b", "magnitude"),
        ("a.b.lora.up.weight", "a.b", "up"),
        ("a.b.lora_linear_layer.up.weight", "a.b", "up"),
        ("a.processor.to_q_lora.down.weight", "a.processor.to_q", "down"),
        ("a.processor.to_q_lora.alpha", "a.processor.to_q", "alpha"),
        ("a.b.lora.alpha", "a.b", "alpha"),
        ("a_b.alpha", "a_b", "alpha"),
        ("a_b.hada_w1_a", "a_b", "hada_w1_a"),
        ("a_b.a1.weight", "a_b", "a1"),
    ],
)
def test_a_tensors_name_is_that_of_a_layer_and_a_part(name: str, layer: str, part: str) -> None:
    assert split(name) == (layer, part)


@pytest.mark.parametrize("name", ["alpha", "weight", "a.lora_A", "a.bias", "a.lora_A.bias", "a.position_ids", "x"])
def test_other_names_have_no_part(name: str) -> None:
    assert split(name) is None


def respelled(tensors: dict[str, Tensor], names: Names, spell: Callable[[str, str, str], str]) -> dict[str, Tensor]:
    """A kohya LoRA with every tensor called `spell(network, diffusers' name of the layer, part)`."""
    result = {}
    for (network, name), parts in found_in(tensors, names).layers.items():
        theirs = diffusers_name(name, TINY.unet) if network == UNET else name
        for part, stored in parts.stored.items():
            result[spell(network, theirs, part)] = tensors[stored]
    return result


def peft(network: str, name: str, part: str) -> str:
    prefix = {UNET: "unet.", TEXT: "text_encoder."}[network]
    return f"{prefix}{name}.lora_{'A' if part == 'down' else 'B'}.weight"


def peft_of_an_adapter(network: str, name: str, part: str) -> str:
    return f"base_model.model.{name}.lora_{'A' if part == 'down' else 'B'}.default.weight"


def diffusers_layers(network: str, name: str, part: str) -> str:
    """diffusers 0.17 to 0.25."""
    if network == TEXT:
        return f"text_encoder.{name}.lora_linear_layer.{part}.weight"
    if ".attn" in name:
        layer, last = name.rsplit(".to_", 1)
        return f"unet.{layer}.processor.to_{last.removesuffix('.0')}_lora.{part}.weight"
    return f"unet.{name}.lora.{part}.weight"


def processors(network: str, name: str, part: str) -> str:
    """diffusers 0.12 to 0.16, with the text encoder's attentions called like the UNet's."""
    if network == TEXT:
        for own, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
            name = name.replace(f".{own}", f".{old}_lora")
        return f"text_encoder.{name}.{part}.weight" if "_lora" in name else f"text_encoder.{name}.lora.{part}.weight"
    return diffusers_layers(network, name, part).removeprefix("unet.")


@pytest.mark.parametrize("spell", [peft, peft_of_an_adapter, diffusers_layers, processors])
def test_a_file_in_another_spelling_is_the_same_adapter(
    spell: Callable[[str, str, str], str],
    pair: tuple[CLIPTextEncoder, UNet],
    understood: Callable[[dict[str, Tensor]], Adapter],
) -> None:
    names = Names.of(pair[1], pair[0])
    tensors = random_lora(names, TINY.unet, alpha=None)
    expected, found = understood(tensors), understood(respelled(tensors, names, spell))
    assert not found.ignored and not expected.ignored
    assert len(expected.text) == 6 * TINY.text.layers
    for ours, theirs in ((found.unet, expected.unet), (found.text, expected.text)):
        assert ours.keys() == theirs.keys()
        for name, delta in ours.items():
            other = theirs[name]
            assert isinstance(delta, LowRank) and isinstance(other, LowRank)
            assert torch.equal(delta.up, other.up) and torch.equal(delta.down, other.down)
