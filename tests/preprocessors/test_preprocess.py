"""Preprocessors beside OpenCV's functions."""

import cv2
import numpy as np
import pytest

from sd_core.preprocessors.canny import canny
from sd_core.preprocessors.lines import gaussian_blur, lineart_standard, scribble_xdog
from sd_core.preprocessors.preprocess import PREPROCESSORS, inpaint_hint, preprocess


def picture(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth shapes with edges of all directions and strengths, and some noise."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (max(2, height // 9), max(2, width // 7), channels), dtype=np.uint8)
    smooth = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    cv2.circle(smooth, (width // 2, height // 2), min(height, width) // 3, (250, 20, 90)[:channels], 2)
    return (smooth.astype(int) + random.integers(-3, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("low", "high"), [(100, 200), (200, 100), (0, 0), (20.7, 60.2), (500, 1020), (1, 2000)])
@pytest.mark.parametrize("size", [(64, 96), (97, 61), (3, 5), (1, 9), (200, 333)])
def test_canny_equals_opencvs(size: tuple[int, int], low: float, high: float) -> None:
    for seed, channels in ((1, 3), (2, 1)):
        image = picture(*size, seed, channels)
        assert np.array_equal(canny(image, low, high), cv2.Canny(image, low, high))


@pytest.mark.parametrize("level", range(3))
def test_canny_equals_opencvs_on_noise_and_ties(level: int) -> None:
    """Few gray levels, so that neighbouring gradients are often equal."""
    random = np.random.default_rng(level)
    image = (random.integers(0, (2, 4, 256)[level], (120, 130, 3)) * (255, 85, 1)[level]).astype(np.uint8)
    for thresholds in ((100, 200), (300, 900)):
        assert np.array_equal(canny(image, *thresholds), cv2.Canny(image, *thresholds))


def test_a_long_weak_line_is_followed_to_its_end() -> None:
    """One strong pixel at the beginning of a spiral makes all of it an edge, as in OpenCV."""
    image = np.full((128, 128), 128, np.uint8)
    angles = np.linspace(3, 28, 2000)
    points = np.stack([64 + 2 * angles * np.cos(angles), 64 + 2 * angles * np.sin(angles)], axis=1)
    cv2.polylines(image, [points.round().astype(np.int32)], isClosed=False, color=155, thickness=2)
    x, y = points[0].astype(int)
    image[y : y + 2, x : x + 2] = 210
    expected = cv2.Canny(image, 20, 200)
    assert (expected > 0).sum() > 1000 > 10 > (cv2.Canny(image, 200, 200) > 0).sum()
    assert np.array_equal(canny(image, 20, 200), expected)


@pytest.mark.parametrize("sigma", [0.5, 5.0, 6.0, 9.0])
def test_the_blur_equals_opencvs(sigma: float) -> None:
    image = picture(70, 90)
    expected = cv2.GaussianBlur(image.astype(np.float32), (0, 0), sigma)
    np.testing.assert_allclose(gaussian_blur(image, sigma), expected, atol=1e-3)


def test_line_drawings_equal_their_formulas_on_opencvs_blurs() -> None:
    image = picture(80, 100)
    float_image = image.astype(np.float32)
    fine, coarse, wide = (cv2.GaussianBlur(float_image, (0, 0), sigma) for sigma in (0.5, 5.0, 6.0))
    dog = (255 - np.min(coarse - fine, axis=2)).clip(0, 255).astype(np.uint8)
    strokes = np.where(2 * (255 - dog.astype(np.float32)) > 32, 255, 0)
    assert 0.02 < (strokes > 0).mean() < 0.98
    assert (scribble_xdog(image, 32) != strokes).mean() < 1e-3  # rounding at the threshold
    intensity = np.min(wide - float_image, axis=2).clip(0, 255)
    intensity = intensity / max(16, np.median(intensity[intensity > 8])) * 127
    expected = intensity.clip(0, 255).astype(np.uint8)
    assert np.abs(lineart_standard(image).astype(int) - expected).max() <= 1
    assert expected.max() > 100


def test_a_flat_image_has_no_lines() -> None:
    flat = np.full((40, 30, 3), 77, np.uint8)
    for name in ("canny", "scribble_xdog", "lineart_standard"):
        assert not preprocess(name, flat).any(), name


@pytest.mark.parametrize("name", ["none", *PREPROCESSORS])
def test_each_makes_an_image_of_the_same_size_and_changes_nothing(name: str) -> None:
    image = picture(48, 56)
    copy = image.copy()
    made = preprocess(name, image)
    assert made.shape == image.shape and made.dtype == np.uint8
    assert np.array_equal(image, copy)
    assert np.array_equal(made, image) == (name in ("none", "tile"))


def test_settings_change_the_result() -> None:
    image = picture(48, 56)
    for name, low in (("canny", 199.0), ("threshold", 60.0), ("scribble_xdog", 10.0), ("blur", 2.0), ("tile", 4.0)):
        assert not np.array_equal(preprocess(name, image, low), preprocess(name, image)), name
    assert not np.array_equal(preprocess("canny", image, 20, 40), preprocess("canny", image, 20, 400))
    assert np.array_equal(preprocess("blur", image, 0), image)


def test_simple_ones() -> None:
    image = picture(48, 56)
    assert np.array_equal(preprocess("invert", image), 255 - image)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(int)
    clear = np.abs(gray - 127) > 1  # two ways of rounding luminance
    assert np.array_equal((preprocess("threshold", image)[..., 0] == 255)[clear], (gray > 127)[clear])
    blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 9)
    assert np.abs(preprocess("blur", image) - blurred).max() <= 0.51


def test_the_masked_part_of_an_inpainting_hint_is_minus_one() -> None:
    image, mask = picture(8, 8), np.zeros((8, 8), np.uint8)
    mask[2:4], mask[4:6] = 255, 127
    hint = inpaint_hint(image, mask)
    assert (hint[2:4] == -1).all()
    np.testing.assert_allclose(hint[4:], image[4:] / 255, atol=1e-6)
