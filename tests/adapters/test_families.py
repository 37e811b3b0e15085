"""Each family's change of a layer, beside LyCORIS' own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

from sd_core.adapters.apply import Adapter
from sd_core.adapters.delta import Delta, LowRank, channelwise
from sd_core.adapters.factored import Hadamard, Kronecker
from sd_core.adapters.rebased import Reweighed
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.layers import pads
from sd_core.models.unet import UNet
from tests.support.adapter_files import kohya_name, with_prefix

LAYERS = {
    "linear": "input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    "gated": "input_blocks.4.1.transformer_blocks.0.ff.net.0.proj",
    "1x1": "input_blocks.4.1.proj_in",
    "3x3": "output_blocks.11.0.in_layers.2",
    "strided": "input_blocks.3.0.op",
}

Understood = Callable[[dict[str, Tensor]], Adapter]


def plain(layer: Any) -> Any:
    """torch's own layer with the same weights."""
    if isinstance(layer, nn.Linear):
        copy: nn.Module = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    elif isinstance(layer, nn.Conv2d):
        copy = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, pads(layer))
    else:
        copy = nn.GroupNorm(layer.num_groups, layer.num_channels)
    copy.load_state_dict(layer.state_dict())
    return copy.requires_grad_(False)


def trained(kind: Callable[..., nn.Module], layer: Any, **options: Any) -> Any:
    """LyCORIS' module with random parameters."""
    module = kind("name", plain(layer), lora_dim=4, alpha=2, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        drawn = torch.randn(parameter.shape, generator=generator) * 0.3
        # Magnitudes of DoRA begin as the weight's: a random sign or size would be no training's result.
        parameter.data = parameter * (1 + drawn) if parameter.abs().min() > 0 and parameter.dim() > 1 else drawn
    module.requires_grad_(False).apply_to()
    return module


FAMILIES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "LoRA": (LoConModule, {}),
    "LoCon with mid": (LoConModule, {"use_tucker": True}),
    "DoRA of outputs": (LoConModule, {"weight_decompose": True}),
    "DoRA of inputs": (LoConModule, {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": (LohaModule, {}),
    "LoHa with cores": (LohaModule, {"use_tucker": True}),
    "LoHa of outputs": (LohaModule, {"weight_decompose": True}),
    "LoKr": (LokrModule, {}),
    "LoKr of factors": (LokrModule, {"decompose_both": True, "factor": 16}),
    "LoKr with a core": (LokrModule, {"use_tucker": True, "factor": 2}),
    "LoKr of whole matrices": (LokrModule, {"full_matrix": True}),
    "LoKr of outputs": (LokrModule, {"weight_decompose": True}),
    "full": (FullModule, {}),
    "GLoRA": (GLoRAModule, {}),
    "IA3 on outputs": (IA3Module, {}),
    "IA3 on inputs": (IA3Module, {"train_on_input": True}),
    "OFT": (DiagOFTModule, {"constraint": 0}),
    "OFT with a constraint": (DiagOFTModule, {"constraint": 0.02}),
    "OFT with a rescale": (DiagOFTModule, {"rescaled": True}),
    "BOFT": (ButterflyOFTModule, {}),
    "BOFT with a rescale": (ButterflyOFTModule, {"rescaled": True, "constraint": 0.01}),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in ("gated", "1x1") else ()) for kind in LAYERS]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_is_what_lycoris_trained(
    family: str, kind: str, pair: tuple[CLIPTextEncoder, UNet], understood: Understood
) -> None:
    unet = pair[1]
    layer: Any = unet.get_submodule(LAYERS[kind])
    module = trained(FAMILIES[family][0], layer, **FAMILIES[family][1])
    adapter = understood(with_prefix(kohya_name("unet", LAYERS[kind], unet.config), module.state_dict()))
    assert list(adapter.unet) == [LAYERS[kind]] and not adapter.text and not adapter.ignored
    check(adapter.unet[LAYERS[kind]], layer, module)


def check(delta: Delta, layer: Any, module: Any) -> None:
    """The change's product, which may be computed from factors, and its dense weight's; to 1e-5 of the largest."""
    x = inputs_of(layer)
    before = plain(layer)(x)
    expected = module(x) - before
    if delta.bias is not None:
        expected = expected - channelwise(delta.bias, expected)
    padding = pads(layer) if isinstance(layer, nn.Conv2d) else (0, 0)
    close(delta(x, padding), expected)
    assert delta.weight().shape == layer.weight.shape
    if isinstance(layer, nn.Conv2d):
        close(F.conv2d(x, delta.weight(), None, layer.stride, padding), expected)
        close(delta(x.contiguous(memory_format=torch.channels_last), padding), expected)
    else:
        close(F.linear(x, delta.weight()), expected)


def inputs_of(layer: Any) -> Tensor:
    shape = (2, layer.in_channels, 6, 8) if isinstance(layer, nn.Conv2d) else (2, 5, layer.in_features)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def close(found: Tensor, expected: Tensor) -> None:
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(found / largest, expected / largest, rtol=1e-5, atol=1e-5)


def test_a_full_change_has_a_bias(pair: tuple[CLIPTextEncoder, UNet], understood: Understood) -> None:
    layer: Any = pair[1].get_submodule(LAYERS["3x3"])
    module = trained(FullModule, layer)
    adapter = understood(with_prefix(kohya_name("unet", LAYERS["3x3"], pair[1].config), module.state_dict()))
    delta = adapter.unet[LAYERS["3x3"]]
    assert delta.bias is not None
    out = plain(layer)(inputs_of(layer))
    delta.add_to(out, inputs_of(layer), padding=pads(layer))
    close(out, module(inputs_of(layer)))
    alone = understood({"lora_unet_conv_in.diff_b": delta.bias})
    assert torch.equal(alone.unet["input_blocks.0.0"].bias, delta.bias)
    assert not alone.unet["input_blocks.0.0"].weight().any()


@pytest.mark.parametrize("part", ["w_norm", "diff"])
def test_a_change_of_a_norm_is_added_to_its_weight_and_bias(
    part: str, pair: tuple[CLIPTextEncoder, UNet], understood: Understood
) -> None:
    name = "input_blocks.4.0.in_layers.0"
    layer: Any = pair[1].get_submodule(name)
    module = trained(NormModule, layer)
    own = {"w_norm": part, "b_norm": {"w_norm": "b_norm", "diff": "diff_b"}[part]}
    tensors = {own[each]: tensor for each, tensor in module.state_dict().items()}
    delta = understood(with_prefix(kohya_name("unet", name, pair[1].config), tensors)).unet[name]
    x = torch.randn(2, layer.num_channels, 4, 4, generator=torch.Generator().manual_seed(3))
    out = plain(layer)(x)
    delta.add_to(out, F.group_norm(x, layer.num_groups, eps=layer.eps))
    close(out, module(x))


def test_a_dylora_is_read_like_a_lora(pair: tuple[CLIPTextEncoder, UNet], understood: Understood) -> None:
    layer: Any = pair[1].get_submodule(LAYERS["3x3"])
    module = DyLoraModule("name", plain(layer), lora_dim=8, alpha=2, block_size=4)
    for parameter in module.requires_grad_(False).parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    adapter = understood(with_prefix(kohya_name("unet", LAYERS["3x3"], pair[1].config), module.state_dict()))
    delta = adapter.unet[LAYERS["3x3"]]
    down, up = torch.cat(list(module.down_list)), torch.cat(list(module.up_list), dim=1)
    close(delta.weight(), (up @ down * 2 / 8).reshape(layer.weight.shape))
    close(delta.shortened(4).weight(), (up[:, :4] @ down[:4] * 2 / 8).reshape(layer.weight.shape))


def test_what_is_of_low_rank_stays_so(pair: tuple[CLIPTextEncoder, UNet], understood: Understood) -> None:
    """A dense change of every layer would be as large as the network."""
    unet = pair[1]

    def kind_of(family: str, kind: str, **options: object) -> type[Delta]:
        module = trained(FAMILIES[family][0], unet.get_submodule(LAYERS[kind]), **FAMILIES[family][1], **options)
        prefix = kohya_name("unet", LAYERS[kind], unet.config)
        return type(understood(with_prefix(prefix, module.state_dict())).unet[LAYERS[kind]])

    assert kind_of("LoCon with mid", "3x3") is LowRank
    assert kind_of("GLoRA", "linear") is LowRank
    assert kind_of("LoHa", "strided") is Hadamard
    assert kind_of("LoKr", "strided") is Kronecker


def test_a_loha_of_a_small_rank_is_one_of_the_product_of_its_ranks(
    pair: tuple[CLIPTextEncoder, UNet], understood: Understood
) -> None:
    name = "middle_block.1.transformer_blocks.0.ff.net.2"
    layer: Any = pair[1].get_submodule(name)
    module = LohaModule("name", plain(layer), lora_dim=2, alpha=1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    module.requires_grad_(False).apply_to()
    delta = understood(with_prefix(kohya_name("unet", name, pair[1].config), module.state_dict())).unet[name]
    assert isinstance(delta, LowRank) and len(delta.down) == 4
    check(delta, layer, module)


def test_glora_has_two_layouts(pair: tuple[CLIPTextEncoder, UNet], understood: Understood) -> None:
    """Old files have the factors in the other order."""
    layer: Any = pair[1].get_submodule(LAYERS["linear"])
    module = trained(GLoRAModule, layer)
    new = module.state_dict()
    swapped = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    old = {f"{swapped[name[:2]]}.weight" if name[:2] in swapped else name: tensor for name, tensor in new.items()}
    prefix = kohya_name("unet", LAYERS["linear"], pair[1].config)
    check(understood(with_prefix(prefix, old)).unet[LAYERS["linear"]], layer, module)


def test_the_oldest_oft_files_hold_rotations(pair: tuple[CLIPTextEncoder, UNet], understood: Understood) -> None:
    layer: Any = pair[1].get_submodule(LAYERS["linear"])
    module = trained(DiagOFTModule, layer)
    prefix = kohya_name("unet", LAYERS["linear"], pair[1].config)
    check(understood({f"{prefix}.oft_diag": module.get_r()}).unet[LAYERS["linear"]], layer, module)


def test_strength_scales_what_a_decomposed_change_adds() -> None:
    """W + m (W' - W), whichever family."""
    layer, x = nn.Linear(6, 10, bias=False), torch.randn(3, 6)
    delta = Reweighed(layer.weight.detach(), torch.rand(10) + 0.5, on_out=True)
    out = layer(x).detach()
    delta.add_to(out, x, -0.5)
    close(out, F.linear(x, layer.weight - 0.5 * delta.weight()).detach())


@pytest.mark.parametrize("family", ["DoRA of inputs", "LoHa", "LoKr", "OFT with a rescale"])
def test_a_change_moves_to_another_dtype_and_leaves_the_base_alone(
    family: str, pair: tuple[CLIPTextEncoder, UNet], understood: Understood
) -> None:
    layer: Any = pair[1].get_submodule(LAYERS["linear"])
    module = trained(FAMILIES[family][0], layer, **FAMILIES[family][1])
    kept = layer.weight.clone()
    delta = understood(with_prefix(kohya_name("unet", LAYERS["linear"], pair[1].config), module.state_dict()))
    half = delta.unet[LAYERS["linear"]].to(torch.device("cpu"), torch.bfloat16)
    x = inputs_of(layer)
    found, expected = half(x.bfloat16()), delta.unet[LAYERS["linear"]](x)
    assert found.dtype is torch.bfloat16 and half.weight().dtype is torch.bfloat16
    assert float((found - expected).abs().max()) < 0.03 * float(expected.abs().max())
    assert torch.equal(layer.weight, kept)
    assert 0 < half.nbytes < layer.weight.nbytes
