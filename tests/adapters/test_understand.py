"""Scales, oddities and bad files."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.adapters.apply import Adapter
from sd_core.adapters.delta import LowRank
from sd_core.adapters.names import Names
from sd_core.adapters.scales import CONFIG, METADATA
from sd_core.errors import ModelError
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from tests.support.adapter_files import drawn, lora_of, random_lora
from tests.support.random_weights import TINY

LINEAR = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"  # (64, 64)
KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DIFFUSERS = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
WIDTH, RANK = 64, 4

Understood = Callable[..., Adapter]


DOWN, UP = drawn(RANK, WIDTH), drawn(WIDTH, RANK)


def lora(**others: Tensor) -> dict[str, Tensor]:
    """A LoRA of one layer. `others` replace tensors or come beside them."""
    return lora_of(KOHYA, DOWN, UP, **others)


def scale_of(adapter: Adapter) -> float:
    change = adapter.unet[LINEAR].weight()
    scale = float((change / (UP @ DOWN)).median())
    torch.testing.assert_close(change, scale * (UP @ DOWN))
    return scale


@pytest.mark.parametrize(
    ("others", "scale"),
    [
        ({}, 1.0),
        ({"alpha": torch.tensor(1.0)}, 0.25),
        ({"alpha": torch.tensor(8.0, dtype=torch.float16)}, 2.0),
        ({"alpha": torch.tensor(1.0, dtype=torch.bfloat16)}, 0.25),
        ({"alpha": torch.tensor(2)}, 0.5),
        ({"alpha": torch.tensor([2.0])}, 0.5),
        ({"alpha": torch.tensor(0.0)}, 1.0),
        ({"alpha": torch.tensor(-4.0)}, -1.0),
        ({"alpha": torch.tensor(1.0), "scale": torch.tensor(0.75)}, 0.75),
    ],
)
def test_alpha_over_the_rank_is_the_scale(others: dict[str, Tensor], scale: float, understood: Understood) -> None:
    """Without an alpha, and with 0, it is 1; a `scale` overrules it."""
    adapter = understood(lora(**others))
    assert scale_of(adapter) == pytest.approx(scale)
    assert not adapter.ignored


def peft(prefix: str = "unet.") -> dict[str, Tensor]:
    return {f"{prefix}{DIFFUSERS}.lora_A.weight": DOWN, f"{prefix}{DIFFUSERS}.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": 2}, 0.5),
        ({"lora_alpha": 2, "use_rslora": True}, 1.0),
        ({"lora_alpha": 2, "alpha_pattern": {"attn1.to_q": 12}}, 3.0),
        ({"lora_alpha": 2, "alpha_pattern": {"attn1.to_k": 12, ".*": 12}}, 0.5),
        ({"lora_alpha": "many"}, 1.0),
        ({"lora_alpha": math.inf}, 1.0),
        ({"lora_alpha": 0}, 1.0),
    ],
)
def test_pefts_configuration_has_the_alpha(config: dict[str, Any], scale: float, understood: Understood) -> None:
    """As diffusers writes it into the file, and as PEFT writes it beside the file."""
    of_diffusers = {METADATA: json.dumps({f"unet.{key}": value for key, value in config.items()})}
    assert scale_of(understood(peft(), of_diffusers)) == pytest.approx(scale)
    assert scale_of(understood(peft("base_model.model."), {CONFIG: json.dumps(config)})) == pytest.approx(scale)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"unet.lora_alpha": {}}'])
def test_a_configuration_that_says_nothing_is_none(text: str, understood: Understood) -> None:
    assert scale_of(understood(peft(), {METADATA: text})) == 1.0


def test_ranks_may_differ_from_layer_to_layer(understood: Understood) -> None:
    other = KOHYA.replace("to_q", "to_k")
    tensors = lora(alpha=torch.tensor(2.0)) | {
        f"{other}.lora_down.weight": DOWN[:2],
        f"{other}.lora_up.weight": UP[:, :2],
        f"{other}.alpha": torch.tensor(2.0),
    }
    adapter = understood(tensors)
    assert scale_of(adapter) == 0.5
    torch.testing.assert_close(adapter.unet[LINEAR.replace("to_q", "to_k")].weight(), UP[:, :2] @ DOWN[:2])


@pytest.mark.parametrize(
    ("layer", "name"), [(LINEAR, KOHYA), ("input_blocks.4.1.proj_in", "lora_unet_down_blocks_1_attentions_0_proj_in")]
)
def test_linear_weights_may_be_4_dimensional_and_1x1_kernels_2_dimensional(
    layer: str, name: str, understood: Understood
) -> None:
    flat = {f"{name}.lora_down.weight": DOWN, f"{name}.lora_up.weight": UP}
    deep = {key: tensor[:, :, None, None] for key, tensor in flat.items()}
    one, other = (understood(tensors).unet[layer] for tensors in (flat, deep))
    assert torch.equal(one.weight(), other.weight())
    assert torch.equal(one.weight().flatten(1), UP @ DOWN)


@pytest.mark.parametrize("family", ["LoRA", "full"])
def test_an_adapter_of_4_channels_fits_a_unet_that_takes_9(
    family: str, pair: tuple[CLIPTextEncoder, UNet], understood: Understood
) -> None:
    """What the UNet for inpainting takes beside the latents is not changed by it."""
    wide = UNet(replace(TINY.unet, in_channels=9))
    down, up, diff = drawn(4, 4, 3, 3), drawn(32, 4, 1, 1), drawn(32, 4, 3, 3, 1)[..., 0]
    tensors = {"lora_down.weight": down, "lora_up.weight": up} if family == "LoRA" else {"diff": diff}
    delta = understood({f"lora_unet_conv_in.{name}": each for name, each in tensors.items()}, unet=wide)
    narrow = understood({f"lora_unet_conv_in.{name}": each for name, each in tensors.items()})
    found, expected = (each.unet["input_blocks.0.0"] for each in (delta, narrow))
    assert found.weight().shape == (32, 9, 3, 3)
    assert torch.equal(found.weight()[:, :4], expected.weight()) and not found.weight()[:, 4:].any()
    x = torch.randn(1, 9, 6, 6)
    torch.testing.assert_close(found(x, (1, 1)), expected(x[:, :4], (1, 1)))
    assert isinstance(found, LowRank) == (family == "LoRA")


def test_an_adapter_of_9_channels_does_not_fit_a_unet_that_takes_4(understood: Understood) -> None:
    tensors = {
        "lora_unet_conv_in.lora_down.weight": drawn(4, 9, 3, 3),
        "lora_unet_conv_in.lora_up.weight": drawn(32, 4),
    }
    with pytest.raises(ModelError, match=r"lora_unet_conv_in\.lora_down\.weight of shape \[4, 9, 3, 3\] does not fit"):
        understood(tensors)


def test_what_changes_nothing_is_named(understood: Understood) -> None:
    others = {
        "lora_te_text_projection.lora_down.weight": DOWN,
        "text_model.embeddings.position_ids": torch.arange(77),
        f"{KOHYA}.scalar": torch.tensor(1.0),
        f"{KOHYA}.rescale": torch.tensor(1.0),
        f"unet.{DIFFUSERS}.lora_A.weight": DOWN,  # the same layer once more
    }
    adapter = understood(lora() | others)
    assert sorted(adapter.ignored) == sorted(others)


def test_embeddings_that_come_along_are_not_ignored(understood: Understood) -> None:
    assert not understood(lora() | {"bundle_emb.my.word.string_to_param.*": drawn(2, 128)}).ignored


def test_a_bias_of_the_second_factor_is_scaled_with_it(understood: Understood) -> None:
    name = f"unet.{DIFFUSERS.replace('to_q', 'to_out.0')}"
    tensors = {f"{name}.lora_A.weight": DOWN, f"{name}.lora_B.weight": UP, f"{name}.lora_B.bias": drawn(WIDTH)}
    metadata = {METADATA: json.dumps({"unet.lora_alpha": 2})}
    delta = understood(tensors, metadata).unet[LINEAR.replace("to_q", "to_out.0")]
    torch.testing.assert_close(delta.bias, drawn(WIDTH) / 2)


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_base_model_version": "sd_v1"},
        {"ss_base_model_version": "sd_1.5", "ss_v2": "False"},
        {"modelspec.architecture": "stable-diffusion-v1/lora"},
        {"ss_base_model_version": "my own"},
    ],
)
def test_metadata_of_v1_or_of_nothing_known_is_no_obstacle(metadata: dict[str, str], understood: Understood) -> None:
    assert understood(lora(), metadata).unet


def test_the_label_is_a1111s_hash(understood: Understood) -> None:
    assert understood(lora(), {"sshs_model_hash": "0123456789abcdef" * 4}).label == "0123456789ab"
    assert understood(lora(), {"sshs_model_hash": "<script>"}).label == understood(lora()).label


def test_equal_keys_mean_equal_content(understood: Understood) -> None:
    """Other names, other numbers and another scale are another adapter, whatever its metadata says of its hash."""
    claimed = {"sshs_model_hash": "0" * 64}
    renamed = {name.replace("to_q", "to_k"): tensor for name, tensor in lora().items()}
    adapters = [
        understood(lora(), claimed),
        understood(lora(lora_up__weight=UP + 1), claimed),
        understood(renamed, claimed),
        understood(lora(), claimed | {METADATA: json.dumps({"unet.lora_alpha": 2})}),
    ]
    assert len({adapter.key for adapter in adapters}) == 4
    assert adapters[0].key == understood(lora(), claimed).key


def test_nothing_given_is_changed(pair: tuple[CLIPTextEncoder, UNet], understood: Understood) -> None:
    tensors = random_lora(Names.of(pair[1], pair[0]), TINY.unet)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    weights = {name: tensor.clone() for name, tensor in pair[1].state_dict().items()}
    adapter = understood(tensors)
    assert all(torch.equal(tensors[name], kept[name]) for name in kept)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pair[1].state_dict().items())
    own = {tensor.data_ptr() for tensor in tensors.values()}
    assert all(delta.down.data_ptr() not in own for delta in adapter.unet.values())
