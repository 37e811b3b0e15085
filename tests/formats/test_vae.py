"""Files of an autoencoder: every layout gives the network of the same weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.keys import VAE_PREFIX
from sd_core.formats.vae import read_vae
from sd_core.models.vae import VAE
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference import reference_vae

CPU = torch.device("cpu")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def prefixed() -> State:
    return random_state_dict(TINY, VAE_PREFIX)


def bare(state: State) -> State:
    return {name.removeprefix(VAE_PREFIX): tensor for name, tensor in state.items()}


def with_leftovers(state: State) -> State:
    return {**bare(state), "loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}


def in_a_checkpoint(_state: State) -> State:
    return random_state_dict(TINY)


def in_diffusers_layout(state: State) -> State:
    return {name: tensor.contiguous() for name, tensor in reference_vae(state, TINY.vae).state_dict().items()}


def write(tensors: State, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors} if path.suffix == ".ckpt" else tensors, path)
    return path


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pt"])
@pytest.mark.parametrize("layout", [dict, bare, with_leftovers, in_a_checkpoint, in_diffusers_layout])
def test_every_layout_is_read(prefixed: State, tmp_path: Path, layout: Callable[[State], State], ending: str) -> None:
    path = write(layout(prefixed), tmp_path / f"vae{ending}")
    for packed in (False, True):
        vae = read_vae(path, CPU, torch.float32, packed=packed)
        assert isinstance(vae, VAE) and vae.config == TINY.vae and vae.encodes
        found = vae.state_dict()
        assert found.keys() == bare(prefixed).keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in bare(prefixed).items())


def test_weights_arrive_in_the_running_dtype(prefixed: State, tmp_path: Path) -> None:
    path = write({name: tensor.half() for name, tensor in prefixed.items()}, tmp_path / "vae.safetensors")
    vae = read_vae(path, CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in vae.parameters()} == {torch.bfloat16}
    assert vae.dtype == torch.bfloat16
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())


def without_one(state: State) -> State:
    return {name: tensor for name, tensor in bare(state).items() if name != "decoder.conv_out.bias"}


def of_sixteen_channels(state: State) -> State:
    return {
        **bare(state),
        "post_quant_conv.weight": torch.zeros(16, 16, 1, 1),
    }


def of_an_unet(_state: State) -> State:
    return {name: tensor for name, tensor in random_state_dict(TINY).items() if not name.startswith(VAE_PREFIX)}


def of_a_lora(_state: State) -> State:
    return {"lora_unet_x.lora_up.weight": torch.zeros(1, 1)}


def of_whole_numbers(state: State) -> State:
    return {**bare(state), "decoder.conv_out.bias": torch.zeros(3, dtype=torch.int64)}


def of_a_tiny_encoder(_state: State) -> State:
    return {"0.weight": torch.zeros(64, 3, 3, 3), "3.conv.0.weight": torch.zeros(64, 64, 3, 3)}


def of_a_tiny_decoder_of_other_latents(_state: State) -> State:
    return {"1.weight": torch.zeros(64, 16, 3, 3), "3.conv.0.weight": torch.zeros(64, 64, 3, 3)}


def of_a_tiny_decoder_cut_short(_state: State) -> State:
    return {"1.weight": torch.zeros(64, 4, 3, 3), "3.conv.0.weight": torch.zeros(64, 64, 3, 3)}


def of_a_huge_tiny_decoder(_state: State) -> State:
    return {"1.weight": torch.zeros(2**20, 4, 1, 1, dtype=torch.float8_e5m2), "3.conv.0.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (without_one, r"1 missing \(first_stage_model\.decoder\.conv_out\.bias\)"),
        (of_sixteen_channels, "not a VAE of Stable Diffusion v1.x: its latents have 16 channels, not 4"),
        (of_an_unet, "it holds no VAE"),
        (of_a_lora, "not a VAE of v1.x: it is a LoRA"),
        (of_whole_numbers, r"decoder\.conv_out\.bias holds torch\.int64"),
        (of_a_tiny_encoder, "the file holds no decoder"),
        (of_a_tiny_decoder_of_other_latents, "its latents have 16 channels, not 4"),
        (of_a_tiny_decoder_cut_short, r"\d+ missing"),
        (of_a_huge_tiny_decoder, "the file holds no decoder"),
    ],
)
def test_other_files_are_refused(
    prefixed: State, tmp_path: Path, spoiled: Callable[[State], State], message: str
) -> None:
    path = write(spoiled(prefixed), tmp_path / "vae.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        read_vae(path, CPU, torch.float32)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_truncated_file_is_named(prefixed: State, tmp_path: Path) -> None:
    path = write(prefixed, tmp_path / "vae.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        read_vae(path, CPU, torch.float32)
