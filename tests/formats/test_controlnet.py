"""Files of ControlNets and T2I-Adapters in every layout, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.controlnet import Change, load_guide
from sd_core.formats.keys import UNET_PREFIX
from sd_core.models.controlnet import ControlNet
from sd_core.models.t2i_adapter import T2IAdapter, T2IAdapterConfig
from tests.support.controls import (
    TINY_ADAPTER,
    TINY_CONTROLNET,
    Weights,
    adapter_in_diffusers,
    control_lora,
    difference,
    prefixed,
    random_adapter_weights,
    random_controlnet,
    write_guide,
)
from tests.support.networks import tiny_networks
from tests.support.random_weights import TINY, random_state_dict
from tests.support.reference import reference_controlnet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_controlnet()


def load(path: Path, dtype: torch.dtype = torch.float32) -> ControlNet | T2IAdapter | Change:
    return load_guide(path, CPU, dtype)


def assert_holds(network: object, weights: Weights) -> None:
    own = network.state_dict()
    assert own.keys() == weights.keys()
    for name, each in weights.items():
        torch.testing.assert_close(own[name].float(), each.float(), rtol=1e-5, atol=1e-7)


def in_diffusers(weights: Weights) -> dict[str, Tensor]:
    return dict(reference_controlnet(weights, TINY_CONTROLNET).state_dict())


def in_a_checkpoint(weights: Weights) -> dict[str, Tensor]:
    return prefixed(weights) | random_state_dict(TINY)


LAYOUTS: dict[str, Callable[[Weights], dict[str, Tensor]]] = {
    "bare": dict,
    "prefixed": prefixed,
    "diffusers": in_diffusers,
    "in a checkpoint": in_a_checkpoint,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, weights: Weights, layout: str) -> None:
    network = load(write_guide(tmp_path, "canny", LAYOUTS[layout](weights)))
    assert isinstance(network, ControlNet)
    assert network.config == TINY.unet
    assert not network.pooled
    assert network.nbytes >= sum(each.nbytes for each in weights.values())
    assert_holds(network, weights)


def test_a_pickled_file(tmp_path: Path, weights: Weights) -> None:
    torch.save(prefixed(weights), tmp_path / "canny.pth")
    assert_holds(load(tmp_path / "canny.pth"), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(tmp_path: Path, weights: Weights, dtype: torch.dtype) -> None:
    halved = {name: each.to(dtype) for name, each in weights.items()}
    network = load(write_guide(tmp_path, "canny", halved))
    assert network.dtype is torch.float32
    assert_holds(network, halved)


def test_a_network_that_reads_style_is_known_by_the_name_of_its_file(tmp_path: Path, weights: Weights) -> None:
    assert load(write_guide(tmp_path, "control_v11e_sd15_Shuffle", dict(weights))).pooled


def test_keys_follow_the_content(tmp_path: Path, weights: Weights) -> None:
    path = write_guide(tmp_path, "canny", dict(weights))
    first, again = load(path).key, load(path).key
    assert first == again
    save_file({name: each.half() for name, each in weights.items()}, path)
    assert load(path).key != first


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    """A UNet's weights by its own names."""
    whole = random_state_dict(TINY, prefix=UNET_PREFIX)
    return {name.removeprefix(UNET_PREFIX): each for name, each in whole.items()}


class TestChanges:
    def test_a_difference(self, tmp_path: Path, weights: Weights, base: Weights) -> None:
        change = load(write_guide(tmp_path, "canny", difference(weights, base)))
        assert isinstance(change, Change)
        unet = tiny_networks(random_state_dict(TINY))[1]
        network = change.of(unet, "tiny")
        assert_holds(network, weights)
        assert network.key != change.of(unet, "other").key

    def test_a_control_lora(self, tmp_path: Path, base: Weights) -> None:
        stored, expected = control_lora(base)
        network = load(write_guide(tmp_path, "canny", stored)).of(tiny_networks(random_state_dict(TINY))[1], "tiny")
        assert_holds(network, expected)

    def test_another_checkpoint(self, tmp_path: Path, weights: Weights, base: Weights) -> None:
        narrow = {name: each[:, :1] if each.dim() == 4 else each for name, each in difference(weights, base).items()}
        change = load(write_guide(tmp_path, "canny", narrow))
        with pytest.raises(ModelError, match="made for UNets of other widths"):
            change.of(tiny_networks(random_state_dict(TINY))[1], "tiny")

    def test_ranks_that_do_not_multiply(self, tmp_path: Path, base: Weights) -> None:
        stored, _ = control_lora(base)
        name = "input_blocks.1.0.in_layers.2.down"
        with pytest.raises(ModelError, match="ranks differ"):
            load(write_guide(tmp_path, "canny", {**stored, name: stored[name][:2]}))


FULL, LIGHT = TINY_ADAPTER, T2IAdapterConfig(channels=(32, 64, 64, 96), blocks=4, kernel=3, is_light=True)


class TestAdapters:
    @pytest.mark.parametrize("config", [FULL, LIGHT], ids=["full", "light"])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("is_diffusers", [False, True])
    def test_layouts(self, tmp_path: Path, config: T2IAdapterConfig, channels: int, is_diffusers: bool) -> None:
        config = T2IAdapterConfig(channels, config.channels, config.blocks, config.kernel, config.is_light)
        weights = random_adapter_weights(config)
        stored = adapter_in_diffusers(weights, config) if is_diffusers else weights
        network = load(write_guide(tmp_path, "t2i", stored))
        assert isinstance(network, T2IAdapter)
        assert network.hint_channels == channels
        assert_holds(network, weights)


def without(weights: Weights, name: str) -> dict[str, Tensor]:
    return {own: each for own, each in weights.items() if own != name}


REFUSED: dict[str, tuple[Callable[[Weights], dict[str, Tensor]], str]] = {
    "a checkpoint": (lambda _: random_state_dict(TINY), "not a ControlNet: it is a checkpoint"),
    "a LoRA": (lambda _: {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "it is a LoRA"),
    "a style adapter": (lambda _: {"transformer_layes.0.attn.in_proj_weight": torch.zeros(2)}, "for styles"),
    "ControlLLLite": (lambda _: {"lllite_unet_x.up.0.weight": torch.zeros(2, 2)}, "ControlLLLite"),
    "Union": (lambda own: {**own, "task_embedding": torch.zeros(2)}, "a ControlNet Union"),
    "SDXL": (lambda own: {**own, "label_emb.0.0.weight": torch.zeros(2, 2)}, "for Stable Diffusion XL"),
    "Flux": (lambda _: {"controlnet_blocks.0.weight": torch.zeros(2, 2)}, "Flux"),
    "SparseCtrl": (lambda own: {**own, "controlnet_cond_embedding.weight": torch.zeros(2)}, "SparseCtrl"),
    "no middle": (lambda own: without(own, "middle_block_out.0.weight"), "1 missing .middle_block_out.0.weight"),
    "no hint block": (
        lambda own: {name: each for name, each in own.items() if "input_hint" not in name},
        "lacks its hint block",
    ),
    "integers": (lambda own: {**own, "zero_convs.0.0.bias": torch.zeros(32, dtype=torch.int32)}, "not floating-point"),
    "another width": (lambda own: {**own, "zero_convs.1.0.bias": torch.zeros(3)}, "of another shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, weights: Weights, name: str) -> None:
    make, message = REFUSED[name]
    path = write_guide(tmp_path, "bad", make(weights))
    with pytest.raises(ModelError, match=message) as raised:
        load(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(("width", "family"), [(1024, "Stable Diffusion 2"), (2048, "Stable Diffusion XL")])
def test_networks_of_other_families(tmp_path: Path, weights: Weights, width: int, family: str) -> None:
    wide = {
        name: each[:, :1].repeat(1, width) if "attn2.to_k" in name or "attn2.to_v" in name else each
        for name, each in weights.items()
    }
    with pytest.raises(ModelError, match=f"a ControlNet for {family}"):
        load(write_guide(tmp_path, "wide", wide))


def test_a_damaged_file(tmp_path: Path, weights: Weights) -> None:
    path = write_guide(tmp_path, "canny", dict(weights))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        load(path)
