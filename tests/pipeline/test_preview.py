import json

import numpy as np
import pytest
import torch

from sd_core.errors import ModelError
from sd_core.layout.choose import bytes_to_pack, lay_out
from sd_core.pipeline.images import PendingImage
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.preview import LATENT_TO_RGB, METADATA_KEY, latent_to_rgb_of, preview, render_of
from tests.support.pictures import levels_apart
from tests.support.tiny_autoencoder import random_taesd


def test_a_preview_is_a_linear_map_of_each_latent() -> None:
    latents = torch.zeros(1, 4, 2, 3)
    latents[0, :, 1, 2] = torch.tensor([1.0, 0.0, 0.0, 2.0])
    image = preview(latents, ((0.5, 0.0, 0.0), (9.0, 9.0, 9.0), (9.0, 9.0, 9.0), (0.0, 0.25, 5.0), (0.0, 0.0, -1.0)))
    assert image.shape == (2, 3, 3) and image.dtype == np.uint8
    assert image[0, 0].tolist() == [128, 128, 0]
    assert image[1, 2].tolist() == [191, 191, 255]


def test_the_usual_map_shows_zero_as_grey() -> None:
    assert preview(torch.zeros(1, 4, 1, 1)).tolist() == [[[128, 128, 128]]]


def test_a_checkpoint_may_bring_its_own_map() -> None:
    own = ((0.1, 0.2, 0.3),) * 5
    assert latent_to_rgb_of({METADATA_KEY: json.dumps(own)}) == own
    assert latent_to_rgb_of({}) == LATENT_TO_RGB


@pytest.mark.parametrize(
    "text", ["", "7", "[[1, 2, 3]]", "[[1, 2], [1, 2], [1, 2], [1, 2]]", "[[1, 2, NaN]]", '["abc"]']
)
def test_a_malformed_map_is_refused_by_name(text: str) -> None:
    with pytest.raises(ModelError, match="latent_to_rgb is not JSON"):
        latent_to_rgb_of({METADATA_KEY: text})


@pytest.mark.parametrize("tiling", [False, True])
def test_a_taesd_renders_the_picture_that_it_decodes(tiling: bool) -> None:
    taesd, latents = random_taesd(), torch.randn(1, 4, 8, 5, generator=torch.Generator().manual_seed(1))
    expected = PendingImage(taesd.decode(latents, tiling=tiling)).wait()
    assert expected.std() > 20
    lay_out(taesd, torch.device("cpu"), torch.float32)
    unpacked = bytes_to_pack(taesd)
    rendered = render_of(taesd, LATENT_TO_RGB, tiling=tiling)(latents)
    assert levels_apart(rendered, expected) <= 1
    assert bytes_to_pack(taesd) == unpacked, "it used layers that belong to the engine's thread"


def test_a_large_preview_is_scaled_down() -> None:
    render = render_of(random_taesd(width=2), LATENT_TO_RGB)
    assert render(torch.zeros(1, 4, 64, 48)).shape == (512, 384, 3)
    assert render(torch.zeros(1, 4, 96, 256)).shape == (192, 512, 3)


def test_any_other_autoencoder_leaves_previews_to_the_map(tiny_model: StableDiffusion) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    rendered = render_of(tiny_model.networks.vae, LATENT_TO_RGB)(latents)
    assert np.array_equal(rendered, preview(latents))
