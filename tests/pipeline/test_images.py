import numpy as np
import pytest
import torch

from sd_core.errors import NotFinite
from sd_core.pipeline.images import PendingImage, to_pixels


def image_of(pixels: torch.Tensor) -> np.ndarray:
    return PendingImage(pixels).wait()


def test_every_level_survives_the_round_trip() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)[:, :, None].repeat(3, axis=2)
    pixels = to_pixels(image, torch.device("cpu"))
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.min() == -1 and pixels.max() == 1
    assert np.array_equal(image_of(pixels), image)


def test_levels_are_rounded_and_clamped() -> None:
    def level(value: float) -> int:
        return int(image_of(torch.full((1, 3, 1, 1), value))[0, 0, 0])

    assert level(-7.0) == 0 and level(7.0) == 255
    assert level(99.6 / 127.5 - 1) == 100
    assert level(99.4 / 127.5 - 1) == 99


def test_axes_are_not_exchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 24, 3), dtype=np.uint8)
    pixels = to_pixels(image, torch.device("cpu"))
    assert pixels.shape == (1, 3, 8, 24)
    assert torch.allclose(pixels[0, 2, 3, 20], torch.tensor(image[3, 20, 2] / 127.5 - 1, dtype=torch.float32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_an_error(value: float) -> None:
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[0, 1, 2, 3] = value
    with pytest.raises(NotFinite, match="SD_DTYPE=bf16 or fp32"):
        image_of(pixels)
