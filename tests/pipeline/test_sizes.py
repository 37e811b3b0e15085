import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd_core.errors import InvalidRequest
from sd_core.nested import Hires
from sd_core.pipeline.sizes import choose_size, enlarged, resized

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
    pixels = resized(np.array(halves()), (128, 72))
    assert (pixels.shape, pixels.dtype) == ((72, 128, 3), np.uint8)
    assert tuple(pixels[36, 10]) == RED
    assert tuple(pixels[36, 118]) == BLUE
    assert pixels.flags.writeable
    assert np.array_equal(resized(np.array(halves()), (64, 32)), np.asarray(halves()))


@pytest.mark.parametrize(
    ("hires", "size", "covering"),
    [
        (Hires(), (256, 192), (256, 192)),
        (Hires(scale=1.3), (160, 120), (160, 120)),
        (Hires(scale=1.0), (128, 96), (128, 96)),
        (Hires(scale=3.0, width=256), (256, 192), (256, 192)),
        (Hires(height=200), (264, 200), (264, 200)),
        (Hires(width=256, height=256), (256, 256), (336, 256)),
        (Hires(width=256, height=128), (256, 128), (256, 192)),
    ],
)
def test_the_size_of_a_second_pass(hires: Hires, size: tuple[int, int], covering: tuple[int, int]) -> None:
    found = enlarged(128, 96, hires)
    assert (found.size, found.covering) == (size, covering)
    assert all(side % 8 == 0 for side in (*found.size, *found.covering, *found.corner))
    for whole, part, start in zip(covering, size, found.corner, strict=True):
        assert 0 <= whole - part - 2 * start <= 15


@given(
    st.integers(8, 256), st.integers(8, 256), st.floats(1, 4),
    st.none() | st.integers(8, 256), st.none() | st.integers(8, 256),
)  # fmt: skip
def test_a_second_pass_is_within_the_limits_or_refused(
    width: int, height: int, scale: float, wide: int | None, high: int | None
) -> None:
    hires = Hires(scale=scale, width=wide and 8 * wide, height=high and 8 * high)
    try:
        found = enlarged(8 * width, 8 * height, hires)
    except InvalidRequest:
        return
    assert all(64 <= side <= 2048 and side % 8 == 0 for side in found.size)
    assert all(whole >= part for whole, part in zip(found.covering, found.size, strict=True))


def test_a_side_beyond_the_limits_is_named() -> None:
    with pytest.raises(InvalidRequest, match="hires: 1024x128 would become 4096x512, but sides are from 64 to 2048"):
        enlarged(1024, 128, Hires(scale=4))
    with pytest.raises(InvalidRequest, match="hires: 1024x128 would become 256x32, but sides"):
        enlarged(1024, 128, Hires(width=256))


QUARTERS = np.repeat(np.repeat(np.array([[10, 80], [150, 220]], np.uint8), 16, axis=0), 32, axis=1)  # 64 x 32


def test_cropping_covers_the_size_and_cuts_off_both_sides_alike() -> None:
    image = np.dstack([np.tile(np.arange(64, dtype=np.uint8) * 4, (32, 1))] * 3)
    square = resized(image, (32, 32), "crop")
    assert np.array_equal(square, image[:, 16:48])
    assert resized(image, (64, 16), "crop").shape == (16, 64, 3)
    assert np.array_equal(resized(image, (64, 16), "crop"), image[8:24])
    assert np.array_equal(resized(image, (32, 32), "crop"), resized(resized(image, (64, 32)), (32, 32), "crop"))


def test_filling_fits_into_the_size_and_continues_the_edges() -> None:
    tall = resized(np.dstack([QUARTERS] * 3), (64, 64), "fill")
    assert np.array_equal(tall[16:48], np.dstack([QUARTERS] * 3))
    assert (tall[:16, :32] == 10).all() and (tall[48:, 32:] == 220).all()
    wide = resized(QUARTERS, (80, 32), "fill")
    assert wide.shape == (32, 80)
    assert np.array_equal(wide[:, 8:72], QUARTERS) and (wide[:16, 72:] == 80).all()


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
@given(sides, sides, st.integers(8, 32), st.integers(8, 32))
@settings(max_examples=30)
def test_every_mode_gives_the_size_asked_for(
    mode: str, own_width: int, own_height: int, width: int, height: int
) -> None:
    own = (min(own_height, 40), min(own_width, 40))
    assert resized(np.zeros(own, np.uint8), (width, height), mode).shape == (height, width)
    assert resized(np.zeros((*own, 3), np.uint8), (width, height), mode).shape == (height, width, 3)


@pytest.mark.parametrize("mode", ["crop", "fill"])
def test_a_line_of_pixels_can_be_resized(mode: str) -> None:
    line = np.full((1, 4000, 3), 9, np.uint8)
    assert (resized(line, (64, 64), mode) == 9).all()


def test_a_mask_does_not_overshoot() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    large = resized(mask, (128, 128))
    assert (np.diff(large[0].astype(int)) >= 0).all() and not large[:, :56].any()
