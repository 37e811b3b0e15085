"""Which variants are chosen, and that whole networks compute the same with them."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sd_core.formats.load import load_networks
from sd_core.layout import onednn, winograd
from sd_core.layout.choose import bytes_to_pack, lay_out
from sd_core.layout.packed import PackedConv2d, PackedGatedLinear, PackedLinear, PointwiseConv2d, WinogradConv2d
from sd_core.layout.plain import ChannelsLastConv2d, WideningGatedLinear, WideningLinear
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.layers import Conv2d, GatedLinear, Linear, name_layers
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from tests.support.random_weights import TINY, write_checkpoint

CPU = torch.device("cpu")
WIDE = winograd.MIN_CHANNELS
Networks = tuple[CLIPTextEncoder, UNet, VAE]
needs_onednn = pytest.mark.skipif(not onednn.packs(torch.float32), reason="no oneDNN for this processor")


def answers(text_encoder: CLIPTextEncoder, unet: UNet, vae: VAE) -> list[Tensor]:
    """Outputs of the three networks to which every layer contributes."""
    torch.manual_seed(0)
    latents, timesteps = torch.randn(2, 4, 9, 8), torch.tensor([999.0, 3.5])
    context = text_encoder(torch.arange(77)[None]).expand(2, -1, -1)
    pixels = torch.randn(1, 3, 64, 64)
    return [
        context,
        unet(latents, timesteps, unet.given(context)),
        vae.decode(latents),
        *vae.moments(pixels),
    ]


def test_a_layout_changes_results_only_by_rounding(networks: Networks) -> None:
    before = answers(*networks)
    for network in networks:
        lay_out(network, CPU, torch.float32)
    for _ in range(2):
        for plain, laid_out in zip(before, answers(*networks), strict=True):
            torch.testing.assert_close(laid_out, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packs", [True, False])
def test_a_forward_changes_no_parameter(networks: Networks, monkeypatch: pytest.MonkeyPatch, packs: bool) -> None:
    if not packs:
        monkeypatch.setattr(onednn, "packs", lambda _dtype: False)
    for network in networks:
        lay_out(network, CPU, torch.float32)
    before = [dict(network.named_parameters()) for network in networks]
    copies = [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]
    answers(*networks)
    for laid_out, parameters, copy in zip(networks, before, copies, strict=True):
        after, state = dict(laid_out.named_parameters()), laid_out.state_dict()
        assert parameters.keys() == after.keys() and copy.keys() == state.keys()
        for name, parameter in parameters.items():
            assert after[name] is parameter
        for name, tensor in copy.items():
            assert torch.equal(state[name], tensor) and state[name].stride() == tensor.stride()


def test_after_forwards_the_state_is_that_of_the_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("stored") / "tiny.safetensors"
    write_checkpoint(path, TINY, torch.float16)
    networks = load_networks(path, CPU, torch.float32, packed=True)
    answers(networks.text_encoder, networks.unet, networks.vae)
    stored = load_file(path)
    for name, tensor in networks.unet.state_dict().items():
        assert torch.equal(tensor, stored[f"model.diffusion_model.{name}"].to(tensor.dtype))


def test_a_network_may_be_laid_out_before_it_is_loaded(networks: Networks) -> None:
    unet = networks[1]
    with torch.device("meta"):
        empty = UNet(TINY.unet)
    name_layers(empty)
    lay_out(empty, CPU, torch.float32)
    empty.load_state_dict(unet.state_dict(), strict=True, assign=True)
    latents, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([500.0])
    context = torch.randn(1, 77, TINY.unet.context_dim)
    answer = empty.eval()(latents, timesteps, empty.given(context))
    torch.testing.assert_close(answer, unet(latents, timesteps, unet.given(context)), rtol=1e-4, atol=1e-4)


def layers() -> nn.Sequential:
    return nn.Sequential(
        Linear(8, 8),
        GatedLinear(8, 8),
        Conv2d(8, 8, 3, padding=1, stride=2),
        Conv2d(8, 8, 1),
        Conv2d(WIDE, WIDE, 3, padding=1),
    )


@pytest.mark.parametrize(
    ("packs", "dtype", "kinds"),
    [
        (True, torch.float32, (PackedLinear, PackedGatedLinear, PackedConv2d, PointwiseConv2d, WinogradConv2d)),
        (True, torch.bfloat16, (PackedLinear, PackedGatedLinear, PackedConv2d, PointwiseConv2d, WinogradConv2d)),
        (False, torch.float32, (Linear, GatedLinear, *[ChannelsLastConv2d] * 3)),
        (False, torch.float16, (WideningLinear, WideningGatedLinear, *[ChannelsLastConv2d] * 3)),
    ],
    ids=["packed", "packed narrow", "plain", "widening"],
)
def test_the_variants_depend_on_cpu_and_dtype(
    monkeypatch: pytest.MonkeyPatch, packs: bool, dtype: torch.dtype, kinds: tuple[type, ...]
) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: packs)
    network = layers()
    name_layers(network)
    bias = network[0].bias
    cast_at_use = lay_out(network, CPU, dtype)
    assert tuple(type(layer) for layer in network) == kinds
    assert cast_at_use == {f"{index}.weight" for index in (range(5) if packs else range(2, 5))}
    assert [layer.name for layer in network] == ["0", "1", "2", "3", "4"]
    assert network[0].bias is bias
    first = list(network)
    assert lay_out(network, CPU, dtype) == cast_at_use
    assert all(again is layer for again, layer in zip(network, first, strict=True))


def test_other_devices_keep_the_plain_layers() -> None:
    network = layers()
    first = list(network)
    assert lay_out(network, torch.device("cuda"), torch.float16) == frozenset()
    assert all(again is layer for again, layer in zip(network, first, strict=True))


def test_a_layer_keeps_its_mode_and_requires_grad() -> None:
    network = nn.Sequential(Linear(4, 4), Conv2d(4, 4, 3)).requires_grad_(False).eval()
    lay_out(network, CPU, torch.float32)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@needs_onednn
def test_weights_still_to_be_packed_are_counted_in_the_compute_dtype() -> None:
    network = nn.Sequential(Conv2d(WIDE, WIDE, 3, padding=1, bias=False), Conv2d(WIDE, 4, 1, bias=False)).half()
    assert bytes_to_pack(network) == 0
    lay_out(network, CPU, torch.float32)
    assert bytes_to_pack(network) == 4 * (16 * WIDE * WIDE + 4 * WIDE)
    network[0](torch.zeros(1, WIDE, 4, 4))
    assert bytes_to_pack(network) == 4 * 4 * WIDE
    network[1](torch.zeros(1, WIDE, 4, 4))
    assert bytes_to_pack(network) == 0


@pytest.mark.parametrize("make", [lambda: Linear(8, 8), lambda: GatedLinear(8, 8)], ids=["linear", "gated"])
def test_layers_that_widen_take_no_memory_at_first_use(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module]
) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: False)
    network = nn.Sequential(make())
    lay_out(network, CPU, torch.float16)
    assert bytes_to_pack(network) == 0
