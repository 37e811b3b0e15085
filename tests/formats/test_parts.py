"""Checkpoint files as people have them: parts of a checkpoint, other spellings, weights in eight bits, leftovers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.detect import Architecture
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from sd_core.formats.load import contents_of, load_networks, load_parts

CPU = torch.device("cpu")
Save = Callable[..., Path]
State = dict[str, Tensor]
QUERY = UNET_PREFIX + "middle_block.1.transformer_blocks.0.attn1.to_q"


def without(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", UNET_PREFIX])
def test_a_unet_alone_loads_under_any_prefix(tiny: Architecture, state: State, saved: Save, prefix: str) -> None:
    unet = without(state, TEXT_PREFIX, VAE_PREFIX)
    path = saved({prefix + name.removeprefix(UNET_PREFIX): tensor for name, tensor in unet.items()})
    parts = load_parts(path, CPU, torch.float32)
    assert (parts.text_encoder, parts.vae, parts.ignored) == (None, None, ())
    assert parts.contents.missing == ("the text encoder", "the VAE")
    assert parts.contents.unet == tiny.unet
    found = parts.unet.state_dict()
    assert all(torch.equal(found[name.removeprefix(UNET_PREFIX)], tensor) for name, tensor in unet.items())


@pytest.mark.parametrize(("prefix", "missing"), [(TEXT_PREFIX, "the text encoder"), (VAE_PREFIX, "the VAE")])
def test_another_checkpoint_supplies_what_is_missing(
    tiny: Architecture, state: State, saved: Save, prefix: str, missing: str
) -> None:
    whole = load_networks(saved(state), CPU, torch.float32)
    path = saved(without(state, prefix))
    with pytest.raises(ModelError, match=f"the file lacks {missing}"):
        load_networks(path, CPU, torch.float32)
    parts = load_parts(path, CPU, torch.float32)
    assert parts.contents.missing == (missing,)
    networks = parts.completed(whole.text_encoder, whole.vae)
    assert networks.architecture == tiny
    assert (networks.text_encoder is whole.text_encoder) == (prefix == TEXT_PREFIX)
    assert (networks.vae is whole.vae) == (prefix == VAE_PREFIX)


def test_a_text_encoder_that_does_not_fit_is_refused(state: State, saved: Save) -> None:
    whole = load_networks(saved(state), CPU, torch.float32)
    narrow = {
        name: torch.zeros(tensor.shape[0], 24) if "attn2.to_k" in name or "attn2.to_v" in name else tensor
        for name, tensor in without(state, TEXT_PREFIX).items()
    }
    with pytest.raises(ModelError, match="width 24, but the text encoder's have 32"):
        load_parts(saved(narrow), CPU, torch.float32).completed(whole.text_encoder)


def test_contents_are_read_from_the_header_alone(tiny: Architecture, state: State, saved: Save) -> None:
    path = saved(without(state, VAE_PREFIX), {"sd_core.native_size": "768", "modelspec.prediction_type": "v"})
    contents = contents_of(path)
    assert (contents.unet, contents.text, contents.vae) == (tiny.unet, tiny.text, None)
    assert (contents.native_size, contents.prediction_type) == (768, "v_prediction")
    with pytest.raises(ModelError, match=rf"{path}.*a LoRA.*put it into loras/"):
        contents_of(saved({"lora_unet_x.lora_up.weight": torch.zeros(1, 1)}))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".scale_weight", ".weight_scale"])
@pytest.mark.parametrize("shape", [(), (1,), (64, 1)])
def test_weights_in_eight_bits_are_multiplied_by_their_scales(
    state: State, saved: Save, ending: str, shape: tuple[int, ...], packed: bool
) -> None:
    scale = torch.linspace(0.25, 0.5, 64).reshape(shape) if shape == (64, 1) else torch.full(shape, 0.25)
    weight = (state[QUERY + ".weight"] / scale).to(torch.float8_e4m3fn)
    scaled = {
        **state,
        QUERY + ".weight": weight,
        QUERY + ending: scale,
        QUERY + ".scale_input": torch.ones(1),
        UNET_PREFIX + "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
    }
    parts = load_parts(saved(scaled), CPU, torch.float32, packed=packed)
    found = parts.unet.state_dict()[QUERY.removeprefix(UNET_PREFIX) + ".weight"]
    assert torch.equal(found, weight.float() * scale)
    assert parts.ignored == ()


def test_a_scale_of_another_shape_is_refused(state: State, saved: Save) -> None:
    path = saved({**state, QUERY + ".scale_weight": torch.ones(7)})
    with pytest.raises(ModelError, match=r"to_q\.scale_weight has the shape \[7\]"):
        load_parts(path, CPU, torch.float32)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_ckpt_loads_as_it_is(state: State, ckpt: Save, zipped: bool, packed: bool) -> None:
    path = ckpt({"state_dict": {name: tensor.half() for name, tensor in state.items()}}, zipped=zipped)
    networks = load_networks(path, CPU, torch.float16, packed=packed)
    found = networks.unet.state_dict()
    assert all(
        torch.equal(found[name.removeprefix(UNET_PREFIX)], tensor.half())
        for name, tensor in without(state, TEXT_PREFIX, VAE_PREFIX).items()
    )


def test_leftovers_are_ignored_and_unusual_ones_named(state: State, saved: Save) -> None:
    leftovers = {
        "model_ema.decay": torch.zeros(1),
        "loss.logvar": torch.zeros(1),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 4),
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.zeros(()),
        UNET_PREFIX + "out.2.lora_down.weight": torch.zeros(4, 4),
        "some_tool.note": torch.zeros(1, dtype=torch.int32),
        "foo": torch.zeros(1),
    }
    parts = load_parts(saved(state | leftovers), CPU, torch.float32)
    assert parts.ignored == ("foo", "some_tool.note")
    assert parts.contents.missing == ()


def test_the_yaml_beside_a_checkpoint_declares_its_prediction(state: State, saved: Save) -> None:
    path = saved(state)
    for text, expected in (
        ('model:\n  params:\n    parameterization: "v"  # SD 2\n', "v_prediction"),
        ("parameterization: v\n", "v_prediction"),
        ("# parameterization: v\n", "epsilon"),
        ("parameterization: eps\n", "epsilon"),
        ("\x00\xff nothing", "epsilon"),
    ):
        path.with_suffix(".yaml").write_text(text)
        assert load_networks(path, CPU, torch.float32).architecture.prediction_type == expected
    path.with_suffix(".yaml").write_text("parameterization: x0")
    with pytest.raises(ModelError, match=r"parameterization \(\.yaml beside the file\) is 'x0'"):
        load_networks(path, CPU, torch.float32)


def test_what_a_conversion_wrote_overrules_the_yaml_of_its_source(state: State, saved: Save) -> None:
    path = saved(state, {"sd_core.prediction_type": "epsilon"})
    path.with_suffix(".yaml").write_text("parameterization: v")
    assert load_networks(path, CPU, torch.float32).architecture.prediction_type == "epsilon"
    path = saved(state, {"modelspec.prediction_type": "epsilon"})
    with pytest.raises(ModelError, match="contradicts itself"):
        load_networks(path, CPU, torch.float32)
