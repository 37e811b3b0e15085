"""TAESD beside diffusers' `AutoencoderTiny`, on the same random weights."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor

from sd_core.formats.vae import read_vae
from sd_core.models.vae import Autoencoder
from tests.support.tiny_autoencoder import random_taesd

CPU = torch.device("cpu")
WIDTH = 16


@pytest.fixture(scope="module")
def theirs() -> AutoencoderTiny:
    taesd = AutoencoderTiny(encoder_block_out_channels=(WIDTH,) * 4, decoder_block_out_channels=(WIDTH,) * 4).eval()
    taesd.load_state_dict(random_taesd(WIDTH).state_dict())
    return taesd.requires_grad_(False)


def authors(state: dict[str, Tensor], half: str, prefix: str = "") -> dict[str, Tensor]:
    """One half under its author's names: the decoder's first operation is counted, though it has no weights."""
    shift = half == "decoder"
    tensors = {}
    for name, tensor in state.items():
        if name.startswith(f"{half}.layers."):
            number, _, rest = name.removeprefix(f"{half}.layers.").partition(".")
            tensors[f"{prefix}{int(number) + shift}.{rest}"] = tensor
    return tensors


def read(path: Path, tensors: dict[str, Tensor], *, packed: bool = False) -> Autoencoder:
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return read_vae(path, CPU, torch.float32, packed=packed)


@pytest.mark.parametrize("packed", [False, True])
def test_both_directions_are_diffusers(theirs: AutoencoderTiny, tmp_path: Path, packed: bool) -> None:
    ours = read(tmp_path / "taesd.safetensors", theirs.state_dict(), packed=packed)
    pixels, latents = torch.rand(2, 3, 64, 40) * 2 - 1, torch.randn(2, 4, 8, 5) * 2
    with torch.inference_mode():
        expected = theirs.encode(pixels).latents
        mean, logvar = ours.moments(pixels)
        assert expected.std() > 0.05
        torch.testing.assert_close(ours.sample(mean, logvar, torch.randn_like(mean)), expected, atol=2e-5, rtol=1e-4)
        expected = theirs.decode(latents).sample
        assert expected.std() > 0.05
        torch.testing.assert_close(ours.decode(latents), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_its_authors_files_hold_one_half_each_or_both(theirs: AutoencoderTiny, tmp_path: Path, ending: str) -> None:
    state, latents = theirs.state_dict(), torch.randn(1, 4, 8, 8)
    expected = theirs.decode(latents).sample
    decoder = authors(state, "decoder")
    both = {**authors(state, "decoder", "decoder."), **authors(state, "encoder", "encoder.")}
    for tensors, encodes in ((decoder, False), (both, True)):
        ours = read(tmp_path / f"taesd{ending}", tensors)
        assert ours.encodes == encodes
        torch.testing.assert_close(ours.decode(latents), expected, atol=2e-5, rtol=1e-4)


def test_seams_of_tiles_and_of_tilings_hardly_show(theirs: AutoencoderTiny, tmp_path: Path) -> None:
    ours = read(tmp_path / "taesd.safetensors", theirs.state_dict())
    latents = torch.randn(1, 4, 80, 24)
    whole = ours.decode(latents)
    assert (ours.decode_tiled(latents) - whole).abs().mean() < 0.02 * whole.std()
    rolled = ours.decode(latents.roll(5, dims=2), tiling=True).roll(-40, dims=2)
    torch.testing.assert_close(rolled, ours.decode(latents, tiling=True), atol=1e-4, rtol=1e-4)
