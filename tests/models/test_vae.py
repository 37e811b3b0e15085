import pytest
import torch

from sd_core.models.vae import VAE


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 40), (136, 72)])
def test_a_latent_covers_eight_pixels(vae: VAE, height: int, width: int) -> None:
    assert vae.downscale == 8
    mean, logvar = vae.moments(torch.zeros(2, 3, height, width))
    assert mean.shape == logvar.shape == (2, 4, height // 8, width // 8)
    assert vae.decode(mean).shape == (2, 3, height, width)


def test_a_sample_is_the_posteriors_with_the_given_noise(vae: VAE) -> None:
    pixels, noise = torch.rand(2, 3, 64, 64) * 2 - 1, torch.randn(2, 4, 8, 8)
    mean, logvar = vae.moments(pixels)
    expected = (mean + (logvar / 2).exp() * noise) * 0.18215
    torch.testing.assert_close(vae.sample(mean, logvar, noise), expected)
    torch.testing.assert_close(vae.sample(mean, logvar, torch.zeros_like(noise)), mean * 0.18215)


def test_extreme_variances_are_clamped(vae: VAE) -> None:
    vae.quant_conv.bias.data[4:] = 1e4
    assert vae.moments(torch.zeros(1, 3, 64, 64))[1].max() == 20.0
    vae.quant_conv.bias.data[4:] = -1e4
    assert vae.moments(torch.zeros(1, 3, 64, 64))[1].min() == -30.0


def test_results_are_float32_whatever_the_weights_are(vae: VAE) -> None:
    latents = torch.randn(1, 4, 8, 8)
    full = vae.decode(latents)
    vae.to(torch.bfloat16)
    pixels = vae.decode(latents)
    assert pixels.dtype == vae.moments(pixels)[0].dtype == torch.float32
    assert vae.dtype == torch.bfloat16
    assert 0 < (pixels - full).std() < 0.1 * full.std()


def test_images_do_not_affect_each_other(vae: VAE) -> None:
    latents = torch.randn(3, 4, 8, 8)
    together = vae.decode(latents)
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], vae.decode(latents[row : row + 1]), rtol=1e-4, atol=1e-4)


def test_a_single_tile_equals_the_whole(vae: VAE) -> None:
    latents, pixels = torch.randn(1, 4, 6, 9), torch.rand(1, 3, 48, 72) * 2 - 1
    torch.testing.assert_close(vae.decode_tiled(latents), vae.decode(latents))
    for tiled, whole in zip(vae.moments_tiled(pixels), vae.moments(pixels), strict=True):
        torch.testing.assert_close(tiled, whole)


def test_opposite_borders_are_neighbours_if_it_tiles(vae: VAE) -> None:
    """Rolled latents give rolled pictures and the other way round; without tiling a border shows."""
    latents, pixels = torch.randn(1, 4, 8, 12), torch.rand(1, 3, 64, 96) * 2 - 1
    by = (3, 5)
    by_pixels = (24, 40)
    close = {"rtol": 1e-3, "atol": 1e-3}
    rolled = vae.decode(latents.roll(by, (2, 3)), tiling=True)
    torch.testing.assert_close(rolled, vae.decode(latents, tiling=True).roll(by_pixels, (2, 3)), **close)
    assert (vae.decode(latents) - vae.decode(latents, tiling=True)).abs().max() > 0.05
    of_rolled = vae.moments(pixels.roll(by_pixels, (2, 3)), tiling=True)
    for moved, own in zip(of_rolled, vae.moments(pixels, tiling=True), strict=True):
        torch.testing.assert_close(moved, own.roll(by, (2, 3)), **close)


@pytest.mark.parametrize("size", [(70, 8), (12, 70)], ids=str)
def test_tiles_of_a_picture_that_tiles_join_over_its_borders(vae: VAE, size: tuple[int, int]) -> None:
    """As near to the whole as tiles of a plain picture are, at the borders too."""
    latents = torch.randn(1, 4, *size)
    whole, parts = vae.decode(latents, tiling=True), vae.decode_tiled(latents, tiling=True)
    assert parts.shape == whole.shape
    for edge in (..., (..., slice(0, 8), slice(None)), (..., slice(None), slice(-8, None))):
        assert torch.corrcoef(torch.stack([whole[edge].flatten(), parts[edge].flatten()]))[0, 1] > 0.9
    mean, _ = vae.moments_tiled(whole.clamp(-1, 1), tiling=True)
    assert torch.corrcoef(torch.stack([mean.flatten(), vae.moments(whole, tiling=True)[0].flatten()]))[0, 1] > 0.9
