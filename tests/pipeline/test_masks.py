import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_core.pipeline.masks import blurred, filled, grown, masked_box, mixed
from sd_core.request import Outpaint

RANDOM = np.random.default_rng(0)
LEVELS = RANDOM.integers(0, 256, (33, 50), dtype=np.uint8)
SPOTS = np.where(RANDOM.random((33, 50)) > 0.9, 255, 0).astype(np.uint8)


def by_opencv(mask: np.ndarray, sigma_x: int, sigma_y: int) -> np.ndarray:
    """AUTOMATIC1111's two calls."""
    if sigma_x:
        mask = cv2.GaussianBlur(mask, (2 * int(2.5 * sigma_x + 0.5) + 1, 1), sigma_x)
    if sigma_y:
        mask = cv2.GaussianBlur(mask, (1, 2 * int(2.5 * sigma_y + 0.5) + 1), sigma_y)
    return mask


@pytest.mark.parametrize("mask", [LEVELS, SPOTS, LEVELS[:1], LEVELS[:, :1], SPOTS[:4, :3]], ids=lambda mask: mask.shape)
@pytest.mark.parametrize("sigmas", [(4, 4), (1, 0), (0, 2), (9, 3), (64, 64)])
def test_the_blur_is_opencvs_bit_for_bit(mask: np.ndarray, sigmas: tuple[int, int]) -> None:
    assert np.array_equal(blurred(mask, *sigmas), by_opencv(mask, *sigmas))


def test_a_mask_of_several_blocks_is_blurred_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sd_core.pipeline.masks.BLOCK_PIXELS", 100)
    assert np.array_equal(blurred(LEVELS, 4, 4), by_opencv(LEVELS, 4, 4))


@pytest.mark.parametrize("level", [0, 255])
def test_a_plain_mask_stays_plain(level: int) -> None:
    plain = np.full((40, 30), level, np.uint8)
    assert np.array_equal(blurred(plain, 16, 16), plain)


def spot(x: int, y: int, width: int = 1, height: int = 1) -> np.ndarray:
    """A white rectangle in a black mask of 100 x 60."""
    mask = np.zeros((60, 100), np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


@pytest.mark.parametrize(
    ("mask", "padding", "ratio", "box"),
    [
        (spot(40, 20, 10, 10), 0, 1.0, (40, 20, 50, 30)),
        (spot(40, 20, 10, 10), 4, 1.0, (36, 16, 54, 34)),
        (spot(40, 20, 10, 10), 0, 2.0, (35, 20, 55, 30)),
        (spot(40, 20, 20, 10), 0, 1.0, (40, 15, 60, 35)),
        (spot(40, 20, 10, 10), 0, 0.5, (40, 15, 50, 35)),
        (spot(0, 0, 10, 10), 4, 1.0, (0, 0, 14, 14)),
        (spot(0, 20, 10, 10), 0, 2.0, (0, 20, 20, 30)),  # moved from the left edge
        (spot(92, 20, 8, 10), 0, 2.0, (80, 20, 100, 30)),  # and from the right one
        (spot(20, 0, 60, 10), 0, 1.0, (20, 0, 80, 60)),
        (spot(10, 20, 80, 10), 0, 1.0, (10, 0, 90, 60)),  # not high enough for the ratio
        (spot(50, 30), 512, 1.0, (0, 0, 100, 60)),
        (spot(50, 30), 0, 1.0, (50, 30, 51, 31)),
        (spot(0, 0, 100, 60), 32, 1.0, (0, 0, 100, 60)),
    ],
)
def test_the_box_is_padded_widened_and_kept_inside(
    mask: np.ndarray, padding: int, ratio: float, box: tuple[int, int, int, int]
) -> None:
    assert masked_box(mask, padding, ratio) == box


def test_a_black_mask_has_no_box() -> None:
    assert masked_box(np.zeros((60, 100), np.uint8), 32, 1.0) is None


@given(
    st.tuples(st.integers(0, 99), st.integers(0, 59)),
    st.tuples(st.integers(1, 100), st.integers(1, 60)),
    st.integers(0, 512),
    st.tuples(st.integers(8, 256), st.integers(8, 256)),
)
def test_the_box_holds_the_whole_mask(
    at: tuple[int, int], size: tuple[int, int], padding: int, target: tuple[int, int]
) -> None:
    mask = spot(*at, *size)
    box = masked_box(mask, padding, target[0] / target[1])
    assert box is not None
    left, top, right, bottom = box
    assert 0 <= left < right <= 100 and 0 <= top < bottom <= 60
    assert mask[top:bottom, left:right].sum() == mask.sum()
    if right - left < 100 and bottom - top < 60:
        assert abs((right - left) - (bottom - top) * target[0] / target[1]) <= max(1, target[0] / target[1])


def test_mixing_is_exact_at_both_ends_and_rounded_between() -> None:
    kept = np.full((1, 256, 3), 200, np.uint8)
    generated = np.full((1, 256, 3), 101, np.uint8)
    weights = np.arange(256, dtype=np.uint8)[None]
    result = mixed(kept, generated, weights)
    assert result.dtype == np.uint8
    assert (result[0, 0] == 200).all() and (result[0, 255] == 101).all()
    expected = np.rint((200.0 * (255 - np.arange(256)) + 101.0 * np.arange(256)) / 255)
    assert np.array_equal(result[0, :, 0], expected)
    for level in range(256):  # kept pixels of every level stay as they are
        one = np.full((1, 1, 3), level, np.uint8)
        assert np.array_equal(mixed(one, 255 - one, np.zeros((1, 1), np.uint8)), one)


def test_an_image_grows_by_its_edge_and_a_mask_by_white() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    more, mask = grown(image, np.zeros((2, 3), np.uint8), Outpaint(left=8, bottom=16))
    assert more.shape == (18, 11, 3) and mask.shape == (18, 11)
    assert np.array_equal(more[:2, 8:], image) and not mask[:2, 8:].any()
    assert (more[:2, :8] == image[:, :1]).all() and (more[2:, 8:] == image[-1]).all()
    assert (mask[:, :8] == 255).all() and (mask[2:] == 255).all()


def test_the_masked_part_is_filled_with_the_colours_around_it() -> None:
    image = np.full((96, 96, 3), (220, 40, 40), np.uint8)
    image[:, 48:] = (50, 90, 220)
    image[32:64, 24:72] = (0, 255, 0)
    mask = np.zeros((96, 96), np.uint8)
    mask[30:66, 22:74] = 255
    result = filled(image, mask)
    assert np.array_equal(result[mask == 0], image[mask == 0])
    assert result[..., 1].max() < 110, "nothing of the masked green is left"
    left, right = result[48, 30].astype(int), result[48, 66].astype(int)
    assert left[0] > left[2] and right[2] > right[0], "each side continues its own colour"


def test_a_mask_that_keeps_nothing_fills_with_black() -> None:
    assert not filled(np.full((16, 16, 3), 200, np.uint8), np.full((16, 16), 255, np.uint8)).any()
