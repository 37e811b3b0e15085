import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sd_core.pipeline.sizes import choose_size, resized

RED, BLUE = (220, 40, 40), (50, 90, 220)


def halves() -> Image.Image:
    """64 x 32, the left half red and the right half blue."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))
    return image


PLENTY = 2048 * 2048


@pytest.mark.parametrize(
    ("own", "width", "height", "expected"),
    [
        ((512, 384), None, None, (512, 384)),
        ((515, 391), None, None, (512, 384)),
        ((4096, 2048), None, None, (2048, 1024)),
        ((3000, 4000), None, None, (1536, 2048)),
        ((100, 32), None, None, (200, 64)),
        ((1, 1), None, None, (64, 64)),
        ((10, 4000), None, None, (64, 2048)),
        ((4000, 10), None, None, (2048, 64)),
        ((512, 384), 256, 128, (256, 128)),
        ((512, 384), 256, None, (256, 192)),
        ((512, 384), None, 192, (256, 192)),
        ((4000, 10), None, 512, (2048, 512)),
        ((4000, 10), 512, None, (512, 64)),
    ],
)
def test_the_size_follows_the_request_and_the_sent_image(
    own: tuple[int, int], width: int | None, height: int | None, expected: tuple[int, int]
) -> None:
    assert choose_size(own, width, height, PLENTY) == expected


def test_the_pixel_limit_shrinks_an_image_and_keeps_its_aspect() -> None:
    assert choose_size((2048, 1024), None, None, 512 * 256) == (512, 256)


sides = st.integers(1, 8000)


@given(sides, sides, st.integers(64 * 64, PLENTY), st.none() | st.integers(8, 256).map(lambda n: n * 8))
def test_every_size_is_within_the_limits(own_width: int, own_height: int, max_pixels: int, width: int | None) -> None:
    if width is not None and width * 64 > max_pixels:
        width = None
    chosen = choose_size((own_width, own_height), width, None, max_pixels)
    assert all(side % 8 == 0 and 64 <= side <= 2048 for side in chosen)
    assert chosen[0] * chosen[1] <= max_pixels
    if min(chosen) > 64 and max(chosen) < 2048:
        assert width is not None or chosen[0] / chosen[1] == pytest.approx(own_width / own_height, rel=0.13)


def test_an_image_becomes_a_writable_array_of_that_size() -> None:
    pixels = resized(halves(), (128, 72))
    assert (pixels.shape, pixels.dtype) == ((72, 128, 3), np.uint8)
    assert tuple(pixels[36, 10]) == RED
    assert tuple(pixels[36, 118]) == BLUE
    assert pixels.flags.writeable
    assert np.array_equal(resized(halves(), (64, 32)), np.asarray(halves()))
