import json

import numpy as np
import pytest
import torch

from sd_core.errors import ModelError
from sd_core.pipeline.preview import LATENT_TO_RGB, METADATA_KEY, latent_to_rgb_of, preview


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
