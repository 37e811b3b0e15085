import copy
import weakref

import pytest
import torch
from torch import nn

from sd_core.models import onednn, winograd
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.layers import Conv2d, GatedLinear, Linear
from sd_core.models.pack import bytes_to_pack, pack
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE
from tests.support.random_weights import TINY

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not onednn.packs(torch.float32), reason="no oneDNN for this processor")


def test_packing_changes_results_by_rounding_only(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> None:
    text_encoder, unet, vae = networks
    latents, ids = torch.randn(2, 4, 9, 8), torch.arange(77)[None]
    timesteps, context = torch.tensor([999.0, 3.5]), torch.randn(2, 77, TINY.unet.context_dim)
    before = text_encoder(ids), unet(latents, timesteps, context), vae.decode(latents)
    for network in networks:
        pack(network, CPU, torch.float32)
    after = text_encoder(ids), unet(latents, timesteps, context), vae.decode(latents)
    for plain, packed in zip(before, after, strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_packing_keeps_every_name_and_value(unet: UNet) -> None:
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    pack(unet, CPU, torch.float32)
    unet(torch.randn(1, 4, 8, 8), torch.tensor([1.0]), torch.randn(1, 77, TINY.unet.context_dim))
    after = unet.state_dict()
    assert before.keys() == after.keys()
    for name, plain in before.items():
        # Of a gated layer the name keeps the values; the gates lie in a packed weight of their own.
        kept = plain.chunk(2)[0] if name.endswith("net.0.proj.weight") else plain
        assert torch.equal(kept, after[name].to_dense().view_as(kept))


@needs_onednn
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_weight_stored_in_another_dtype_is_packed_as_if_cast_before(stored: torch.dtype) -> None:
    pictures, tokens = torch.randn(1, 256, 5, 4), torch.randn(1, 3, 6)
    for layer, x in (
        (Conv2d(256, 8, 3), pictures),
        (Conv2d(256, 8, 1), pictures),
        (Conv2d(256, 256, 3, padding=1), pictures),  # by Winograd's algorithm
        (Linear(6, 4), tokens),
        (GatedLinear(6, 4), tokens),
    ):
        cast = copy.deepcopy(layer)
        layer.weight.data = layer.weight.data.to(stored)
        cast.weight.data = layer.weight.data.float()
        for each in (layer, cast):
            pack(each, CPU, torch.float32)
        assert torch.equal(layer(x), cast(x))


@needs_onednn
def test_what_is_still_to_be_packed_is_counted_in_the_running_dtype() -> None:
    wide = winograd.LEAST_CHANNELS
    network = nn.Sequential(Conv2d(wide, wide, 3, padding=1, bias=False), Conv2d(wide, 4, 1, bias=False)).half()
    assert bytes_to_pack(network) == 0
    pack(network, CPU, torch.float32)
    assert bytes_to_pack(network) == 4 * (16 * wide * wide + 4 * wide)
    network[0](torch.zeros(1, wide, 4, 4))
    assert bytes_to_pack(network) == 4 * 4 * wide
    network[1](torch.zeros(1, wide, 4, 4))
    assert bytes_to_pack(network) == 0


@needs_onednn
def test_a_packed_weight_is_the_only_copy() -> None:
    layer = Linear(8, 8)
    plain = weakref.ref(layer.weight)
    pack(layer, CPU, torch.float32)
    layer(torch.randn(1, 8))
    assert plain() is None


@pytest.mark.parametrize("packs", [True, False])
def test_layers_pack_on_a_cpu_that_can(monkeypatch: pytest.MonkeyPatch, packs: bool) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: packs)
    for device, changes in ((CPU, True), (torch.device("cuda"), False)):
        network = nn.Sequential(Conv2d(8, 8, 3), Linear(8, 8))
        names = pack(network, device, torch.float32)
        assert names == ({"0.weight", "1.weight"} if changes and packs else set())
        assert [layer.packs for layer in network] == [torch.float32 if changes and packs else None] * 2
        assert network[0].channels_last is (changes and not packs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_where_a_narrow_dtype_cannot_be_packed_weights_are_widened_in_use(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: False)
    pictures, tokens = torch.randn(1, 6, 5, 4).to(dtype), torch.randn(1, 3, 6).to(dtype)
    for layer, x in ((Conv2d(6, 4, 3), pictures), (Linear(6, 4), tokens), (GatedLinear(6, 4), tokens)):
        expected = layer(x.float()).to(dtype)
        layer.to(dtype)
        pack(layer, CPU, dtype)
        assert layer.widens
        answer = layer(x)
        assert answer.dtype == layer.weight.dtype == dtype
        torch.testing.assert_close(answer, expected, rtol=0.02, atol=0.02)


def test_float32_is_wide_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "packs", lambda _dtype: False)
    layer = Linear(6, 4)
    pack(layer, CPU, torch.float32)
    assert not layer.widens


def test_where_nothing_can_be_packed_a_convolution_becomes_channels_last() -> None:
    layer, x = Conv2d(8, 4, 3), torch.randn(1, 8, 5, 6)
    expected, layer.channels_last = layer(x), True
    torch.testing.assert_close(layer(x), expected)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
