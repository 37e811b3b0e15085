import torch
from torch import nn

from bench.random_weights import TINY
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.layers import Conv2d, Linear
from sd_core.models.pack import LEAST_WIDTH, pack
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE

CPU = torch.device("cpu")


def test_packing_changes_results_by_rounding_only(networks: tuple[CLIPTextEncoder, UNet, VAE]) -> None:
    text_encoder, unet, vae = networks
    latents, ids = torch.randn(2, 4, 9, 8), torch.arange(77)[None]
    timesteps, context = torch.tensor([999.0, 3.5]), torch.randn(2, 77, TINY.unet.context_dim)
    before = text_encoder(ids), unet(latents, timesteps, context), vae.decode(latents)
    for network in networks:
        pack(network, CPU, least_width=1)
    after = text_encoder(ids), unet(latents, timesteps, context), vae.decode(latents)
    for plain, packed in zip(before, after, strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-4)


def test_packing_keeps_every_name_and_value(unet: UNet) -> None:
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    pack(unet, CPU)
    after = unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_cpu_gets_channels_last_and_other_devices_their_weights_as_they_are() -> None:
    for device, packed in ((CPU, True), (torch.device("cuda"), False)):
        network = nn.Sequential(Conv2d(8, 8, 3), Linear(LEAST_WIDTH, 8), Linear(8, LEAST_WIDTH))
        pack(network, device)
        assert network[0].weight.is_contiguous(memory_format=torch.channels_last) is packed
        assert network[1].as_convolution is packed
        assert network[2].as_convolution is False
