"""The three networks beside transformers' and diffusers' on the same random weights, float32 on the CPU.

Differences are relative: the largest absolute one over the reference's largest absolute value. The weights are scaled
so that relevant mistakes exceed the tolerances (`tests.support.random_weights`), as those in `MISTAKES` do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from sd_core.formats.detect import Architecture
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from sd_core.formats.load import Networks, load_networks
from sd_core.layout.choose import lay_out
from sd_core.models.clip import MLP
from sd_core.models.vae import VAE
from tests.support.random_weights import FULL, TINY, random_state_dict, write_checkpoint
from tests.support.reference import reference_text_encoder, reference_unet, reference_vae

TEXT_TOLERANCE = 1e-5
TOLERANCE = 1e-4
CPU = torch.device("cpu")


class Pair(NamedTuple):
    """Our networks and the references, with equal weights."""

    ours: Networks
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL


def load_pair(directory: Path, architecture: Architecture, packed: bool) -> Pair:
    path = directory / "random.safetensors"
    write_checkpoint(path, architecture, torch.float32)
    ours = load_networks(path, CPU, torch.float32)
    path.unlink()  # the weights stay mapped; 4 GB of a full-size file need not stay on the disk
    weights = {
        prefix + name: tensor.clone() if packed else tensor
        for prefix, network in (
            (TEXT_PREFIX, ours.text_encoder),
            (UNET_PREFIX, ours.unet),
            (VAE_PREFIX, ours.vae),
        )
        for name, tensor in network.state_dict().items()
    }
    pair = Pair(
        ours,
        reference_text_encoder(weights, architecture.text),
        reference_unet(weights, architecture.unet),
        reference_vae(weights, architecture.vae),
    )
    if packed:
        for network in (ours.text_encoder, ours.unet, ours.vae):
            lay_out(network, CPU, torch.float32)
    return pair


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "packed"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(tmp_path_factory.mktemp("tiny"), TINY, packed=request.param)


@pytest.fixture
def broken(tmp_path: Path) -> Pair:
    """A new pair for a test that breaks it."""
    return load_pair(tmp_path, TINY, packed=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_ids(vocabulary: int, rows: int = 2, length: int = 77) -> Tensor:
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))


def difference(ours: Tensor, reference: Tensor) -> float:
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() / reference.abs().max()).item()


@torch.inference_mode()
def text_difference(pair: Pair, length: int = 77) -> float:
    ids = token_ids(pair.ours.architecture.text.vocab_size, length=length)
    return difference(pair.ours.text_encoder(ids), pair.text_encoder(ids).last_hidden_state)


@torch.inference_mode()
def unet_difference(pair: Pair, height: int, width: int, timesteps: tuple[float, ...]) -> float:
    config, times = pair.ours.architecture.unet, torch.tensor(timesteps)
    latents = normal(len(timesteps), config.in_channels, height, width)
    context = normal(len(timesteps), 77, config.context_dim, seed=1)
    reference = pair.unet(latents, times, context).sample
    assert 0.3 < reference.std() < 3, "these weights would hide mistakes: eps should have unit size"
    return difference(pair.ours.unet(latents, times, pair.ours.unet.given(context)), reference)


@torch.inference_mode()
def encode_differences(pair: Pair, height: int, width: int) -> tuple[float, float]:
    pixels = normal(2, 3, height, width).clamp(-1, 1)
    posterior = pair.vae.encode(pixels).latent_dist
    mean, logvar = pair.ours.vae.moments(pixels)
    return difference(mean, posterior.mean), difference(logvar, posterior.logvar)


@torch.inference_mode()
def decode_difference(pair: Pair, height: int, width: int) -> float:
    latents = normal(2, 4, height, width)
    reference = pair.vae.decode(latents / pair.ours.vae.config.scale_factor).sample
    return difference(pair.ours.vae.decode(latents), reference)


@pytest.mark.parametrize("length", [77, 5, 1])
def test_the_text_encoder_equals_transformers(tiny: Pair, length: int) -> None:
    assert text_difference(tiny, length) <= TEXT_TOLERANCE


# 8x8 is the smallest image that a job can ask for; 17x9 is one of 136x72 pixels, whose halves are rounded up.
@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 9), (9, 64)])
def test_the_unet_equals_diffusers(tiny: Pair, height: int, width: int) -> None:
    assert unet_difference(tiny, height, width, (981.0, 1.0)) <= TOLERANCE


def test_the_unet_equals_diffusers_at_different_fractional_timesteps(tiny: Pair) -> None:
    assert unet_difference(tiny, 8, 8, (999.0, 0.0, 421.37, 0.0292)) <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(64, 64), (136, 72), (8, 24)])
def test_the_vae_encoder_equals_diffusers(tiny: Pair, height: int, width: int) -> None:
    assert max(encode_differences(tiny, height, width)) <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 9), (1, 24)])
def test_the_vae_decoder_equals_diffusers(tiny: Pair, height: int, width: int) -> None:
    assert decode_difference(tiny, height, width) <= TOLERANCE


def _set_eps(module: nn.Module, kind: type[nn.GroupNorm | nn.LayerNorm], wrong: dict[float, float]) -> None:
    for norm in module.modules():
        if isinstance(norm, kind):
            norm.eps = wrong.get(norm.eps, norm.eps)


def vae_eps(pair: Pair) -> float:
    """GroupNorm's default eps instead of the VAE's."""
    _set_eps(pair.ours.vae, nn.GroupNorm, {1e-6: 1e-5})
    return min(decode_difference(pair, 8, 8), *encode_differences(pair, 64, 64))


def unet_eps(pair: Pair) -> float:
    """One eps everywhere in the UNet."""
    _set_eps(pair.ours.unet, nn.GroupNorm, {1e-6: 1e-5})
    return unet_difference(pair, 8, 8, (981.0, 1.0))


def residual_eps(pair: Pair) -> float:
    _set_eps(pair.ours.unet, nn.GroupNorm, {1e-5: 1e-6})
    return unet_difference(pair, 8, 8, (981.0, 1.0))


def text_eps(pair: Pair) -> float:
    _set_eps(pair.ours.text_encoder, nn.LayerNorm, {1e-5: 1e-6})
    return text_difference(pair)


def exact_gelu(pair: Pair) -> float:
    """The exact GELU, which newer CLIPs have."""
    for mlp in pair.ours.text_encoder.modules():
        if isinstance(mlp, MLP):
            mlp.forward = lambda x, add, _given, mlp=mlp: mlp.fc2(F.gelu(mlp.fc1(x)), add)  # type: ignore[assignment, misc]
    return text_difference(pair)


def shifted_timesteps(pair: Pair) -> float:
    """Timesteps that are rounded."""
    unet = pair.ours.unet
    forward = unet.forward
    unet.forward = lambda x, timesteps, given: forward(x, timesteps.round(), given)  # type: ignore[method-assign]
    return unet_difference(pair, 8, 8, (421.37, 421.37))


def one_timestep_for_all_rows(pair: Pair) -> float:
    unet = pair.ours.unet
    forward = unet.forward
    unet.forward = lambda x, timesteps, given: forward(x, timesteps[:1], given)  # type: ignore[method-assign]
    return unet_difference(pair, 8, 8, (981.0, 1.0))


def symmetric_padding(pair: Pair) -> float:
    """The encoder's downsampling padded on all sides, as the UNet's is."""
    vae = pair.ours.vae
    assert isinstance(vae, VAE)
    for level in vae.encoder.down[:-1]:
        conv = level.downsample.conv
        level.downsample.forward = lambda x, _, conv=conv: F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
    return min(encode_differences(pair, 64, 64))


MISTAKES: tuple[tuple[Callable[[Pair], float], float], ...] = (
    (vae_eps, TOLERANCE),
    (unet_eps, TOLERANCE),
    (residual_eps, TOLERANCE),
    (text_eps, TEXT_TOLERANCE),
    (exact_gelu, TEXT_TOLERANCE),
    (shifted_timesteps, TOLERANCE),
    (one_timestep_for_all_rows, TOLERANCE),
    (symmetric_padding, TOLERANCE),
)


@pytest.mark.parametrize(("mistake", "tolerance"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_the_tolerances_catch_a_mistake(broken: Pair, mistake: Callable[[Pair], float], tolerance: float) -> None:
    assert mistake(broken) > 10 * tolerance


def test_random_checkpoints_are_reproducible() -> None:
    name = f"{VAE_PREFIX}quant_conv.weight"
    first, again = (random_state_dict(TINY, prefix=VAE_PREFIX)[name] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_state_dict(TINY, prefix=VAE_PREFIX, seed=1)[name])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load_pair(tmp_path_factory.mktemp("full"), FULL, packed=False)


@pytest.mark.full_size
def test_full_size_networks_equal_the_references(full: Pair) -> None:
    """v1.5's own architecture, on images small enough for two cores."""
    assert text_difference(full) <= TEXT_TOLERANCE
    assert unet_difference(full, 17, 9, (981.0, 421.37)) <= TOLERANCE
    assert max(encode_differences(full, 72, 136)) <= TOLERANCE
    assert decode_difference(full, 9, 17) <= TOLERANCE
