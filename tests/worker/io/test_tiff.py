import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_core.errors import InvalidImage
from tests.support.image_files import (
    BLUE,
    GRAYS,
    GREEN,
    HEIGHT,
    RED,
    WIDTH,
    YELLOW,
    centres,
    coloured_quarters,
    quarters,
    tiff_of,
)  # fmt: skip
from tests.support.pictures import file_of
from worker.io import tiff_tags
from worker.io.pictures import decode_picture
from worker.io.tiff_tags import read_directory

COLOURS = [RED, GREEN, BLUE, YELLOW]
INVERTED = [255 - level for level in GRAYS]
UNIT = quarters([level / 255 for level in GRAYS], np.float64)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode_picture(data).image)


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidImage) as caught:
        decode_picture(data)
    return str(caught.value)


FILES = pytest.mark.parametrize("order", ["<", ">"]), pytest.mark.parametrize("deflate", [False, True])


def every_file(test: Any) -> Any:
    """Both byte orders; read by Pillow itself (raw) and by libtiff (compressed)."""
    for mark in FILES:
        test = mark(test)
    return test


@every_file
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
def test_unsigned_gray(bits: int, white_is_zero: bool, big: bool, order: str, deflate: bool) -> None:
    top = (1 << bits) - 1
    levels = [round(level * top / 255) for level in GRAYS]
    pixels = quarters(levels, np.uint32 if bits == 32 else np.uint16 if bits > 8 else np.uint8)
    data = tiff_of(pixels, bits=bits, photometric=0 if white_is_zero else 1, order=order, deflate=deflate, big=big)
    expected = [round(level / top * 255) for level in levels]
    assert centres(decoded(data)) == [255 - level if white_is_zero else level for level in expected]


@every_file
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floating_point_gray(dtype: Any, white: int, white_is_zero: bool, order: str, deflate: bool) -> None:
    pixels = (UNIT * white).astype(dtype)
    data = tiff_of(pixels, sample_format=3, photometric=0 if white_is_zero else 1, order=order, deflate=deflate)
    assert centres(decoded(data)) == (INVERTED if white_is_zero else list(GRAYS))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_few_overshooting_pixels_do_not_decide_the_range(dtype: Any) -> None:
    pixels = UNIT.astype(dtype)
    plain = decoded(tiff_of(pixels, sample_format=3))
    for overshoot in (1.0002, 1.5, 300.0, -2.0):
        shot = pixels.copy()
        shot[0, 0] = overshoot
        again = decoded(tiff_of(shot, sample_format=3))
        assert again[0, 0, 0] == (0 if overshoot < 0 else 255)
        again = again.copy()
        again[0, 0] = plain[0, 0]
        assert np.array_equal(again, plain)


def test_a_black_background_does_not_decide_the_range() -> None:
    pixels = np.zeros((HEIGHT, WIDTH), np.float32)
    pixels[:8, :8] = 200
    assert decoded(tiff_of(pixels, sample_format=3))[0, 0, 0] == 200
    pixels[:8, :8] = 0.2
    assert decoded(tiff_of(pixels, sample_format=3))[0, 0, 0] == 51
    assert decoded(tiff_of(pixels * 0, sample_format=3)).max() == 0


def test_floating_point_samples_without_a_known_range_are_refused() -> None:
    assert "most of its floating-point samples exceed 255" in refusal(tiff_of(UNIT * 60_000, sample_format=3))
    for value in (np.nan, np.inf, -np.inf):
        pixels = UNIT.astype(np.float32)
        pixels[5, 5] = value
        assert "not finite numbers" in refusal(tiff_of(pixels, sample_format=3))


@every_file
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_signed_samples_are_refused_by_name(dtype: Any, order: str, deflate: bool) -> None:
    pixels = quarters([100, 30, 40, 120], dtype)
    bits = pixels.dtype.itemsize * 8
    expected = f"image: a TIFF with {bits}-bit signed integer samples (1 of gray) is not supported"
    assert refusal(tiff_of(pixels, sample_format=2, order=order, deflate=deflate)) == expected


@every_file
@pytest.mark.parametrize(
    ("pixels", "options", "named"),
    [
        (quarters(COLOURS, np.uint32), {"photometric": 2}, "32-bit unsigned integer samples (3 of RGB)"),
        (quarters(COLOURS, np.float32), {"photometric": 2, "sample_format": 3}, "32-bit floating-point samples"),
        (quarters(COLOURS, np.float64), {"photometric": 2, "sample_format": 3}, "64-bit floating-point samples"),
        (quarters(COLOURS, np.int16), {"photometric": 2, "sample_format": 2}, "16-bit signed integer samples"),
        (quarters(GRAYS, np.uint64), {}, "64-bit unsigned integer samples"),
        (quarters(GRAYS, np.complex64), {"sample_format": 6}, "64-bit complex samples"),
        (quarters(GRAYS, np.uint8), {"sample_format": 9}, "8-bit format 9 samples"),
        (quarters(GRAYS, np.float64), {"sample_format": 3, "tags": {317: (3, (2,))}}, "with predictor 2"),
        (quarters(GRAYS, np.uint16), {"bits": 10}, "10-bit unsigned integer samples"),
        (quarters(GRAYS, np.uint16), {"photometric": 32803}, "of photometric 32803"),
        (quarters(COLOURS, np.uint16), {"photometric": 2, "tags": {284: (3, (2,))}}, "of RGB in separate planes"),
        (quarters(COLOURS, np.uint8), {"photometric": 2, "tags": {258: (3, (8, 8, 4))}}, "not all of one kind"),
        (quarters(COLOURS, np.uint8), {"photometric": 2, "tags": {339: (3, (1, 1, 2))}}, "not all of one kind"),
    ],
)
def test_samples_that_would_be_shown_wrong_are_refused_by_name(
    pixels: np.ndarray, options: dict[str, Any], named: str, order: str, deflate: bool
) -> None:
    message = refusal(tiff_of(pixels, order=order, deflate=deflate, **options))
    assert named in message
    assert message.endswith("is not supported")


@every_file
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_with_and_without_transparency(dtype: Any, order: str, deflate: bool) -> None:
    scale = np.iinfo(dtype).max // 255
    pixels = quarters(COLOURS, np.uint32) * scale
    assert centres(decoded(tiff_of(pixels.astype(dtype), photometric=2, order=order, deflate=deflate))) == COLOURS
    alpha = quarters([255, 0, 255, 255], np.uint32)[..., None] * scale
    transparent = np.concatenate([pixels, alpha], axis=2).astype(dtype)
    data = tiff_of(transparent, photometric=2, tags={338: (3, (2,))}, order=order, deflate=deflate)
    assert centres(decoded(data)) == [RED, 255, BLUE, YELLOW]


@every_file
def test_gray_with_transparency(order: str, deflate: bool) -> None:
    pixels = quarters([(level, alpha) for level, alpha in zip(GRAYS, (255, 0, 255, 255), strict=True)])
    for extra, first in ((2, 220), (1, 220), (0, 220)):
        data = tiff_of(pixels, tags={338: (3, (extra,))}, order=order, deflate=deflate)
        assert centres(decoded(data)) == [first, 30 if extra == 0 else 255, 40, 230]


@every_file
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_planes_of_one_sample_are_no_planes(bits: int, order: str, deflate: bool) -> None:
    top = (1 << bits) - 1
    pixels = quarters([0, top // 3, top, 0], np.uint16 if bits == 16 else np.uint8)
    data = tiff_of(pixels, bits=bits, tags={284: (3, (2,))}, order=order, deflate=deflate)
    assert centres(decoded(data)) == [0, 85, 255, 0]


@pytest.mark.parametrize("predictor", [2, 3])
@pytest.mark.parametrize("order", ["<", ">"])
def test_predictors_are_undone(predictor: int, order: str) -> None:
    if predictor == 2:
        pixels = quarters([level * 257 for level in GRAYS], np.uint16)
        stored = np.diff(pixels, axis=1, prepend=np.zeros((HEIGHT, 1), np.uint16)).astype(np.uint16)
        data = tiff_of(stored, order=order, deflate=True, tags={317: (3, (2,))})
    else:
        planes = UNIT.astype(">f4").view(np.uint8).reshape(HEIGHT, WIDTH, 4).transpose(0, 2, 1).reshape(HEIGHT, -1)
        stored = np.diff(planes, axis=1, prepend=np.zeros((HEIGHT, 1), np.uint8)).astype(np.uint8)
        same_bytes = np.ascontiguousarray(stored).view(order + "f4")
        data = tiff_of(same_bytes, sample_format=3, order=order, deflate=True, tags={317: (3, (3,))})
    assert centres(decoded(data)) == list(GRAYS)


def test_undefined_samples_are_unsigned() -> None:
    assert centres(decoded(tiff_of(quarters(GRAYS), sample_format=4))) == list(GRAYS)


@pytest.mark.parametrize(
    ("mode", "compression"),
    [("1", None), ("1", "group4"), ("L", "jpeg"), ("RGB", "jpeg"), ("CMYK", "jpeg"), ("YCbCr", "jpeg")]
    + [
        (mode, compression)
        for mode in ("L", "P", "RGB", "RGBA", "CMYK", "YCbCr")
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")
    ],
)
def test_files_of_other_modes_decode_as_pillow_decodes_them(mode: str, compression: str | None) -> None:
    image = coloured_quarters().convert(mode)
    data = file_of(image, "TIFF", compression=compression)
    assert np.abs(decoded(data).astype(int) - np.asarray(image.convert("RGB"))).mean() <= 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "damage",
    [
        {282: (5, struct.pack("<II", 72, 0))},
        {282: (5, b"")},
        {282: (99, b"\1\2\3\4")},
        {34665: (4, (8,))},
        {34665: (4, (0xFFFFFFF0,))},
        {34853: (4, (4,))},
        {306: (7, b"no date")},
        {700: (7, b"no xmp")},
        {34675: (7, b"x" * 2_000_000)},
        {65000: (7, b"unknown")},
    ],
)
def test_damaged_metadata_does_not_matter(damage: dict[int, Any], order: str) -> None:
    pixels = quarters(COLOURS)
    data = tiff_of(pixels, photometric=2, order=order, tags={**damage, 274: (3, (6,))})
    assert centres(decoded(data)) == [BLUE, RED, YELLOW, GREEN]


def test_an_orientation_that_is_not_one_is_ignored_and_xmp_is_asked() -> None:
    pixels = quarters(COLOURS)
    for wrong in ((3, (9,)), (3, (0,)), (7, b"\6\0\0\0"), (99, b"\6\0\0\0")):
        assert centres(decoded(tiff_of(pixels, photometric=2, tags={274: wrong}))) == COLOURS
    xmp = (1, b'tiff:Orientation="6"')
    assert decode_picture(tiff_of(pixels, photometric=2, tags={700: (7, xmp[1])})).image.size == (64, 96)


def test_of_several_pages_the_first_is_taken_and_that_is_said() -> None:
    pages = [coloured_quarters(), Image.new("RGB", (8, 8))]
    picture = decode_picture(file_of(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert centres(np.asarray(picture.image)) == COLOURS
    assert picture.warnings == ("image is animated: its first frame was used",)


@pytest.mark.parametrize("big", [False, True])
def test_a_file_that_is_cut_anywhere_is_refused(big: bool) -> None:
    data = tiff_of(quarters(COLOURS), photometric=2, big=big)
    for length in (4, 7, 8, 12, 100, len(data) // 2, len(data) - 200, len(data) - 30):
        assert "image: " in refusal(data[:length])
    pixels_cut = tiff_of(quarters(COLOURS), photometric=2, tags={273: (4, (10**6,) * 7)})
    assert "broken or truncated" in refusal(pixels_cut)


@pytest.mark.parametrize("tag", [256, 258, 262, 273, 339])
def test_a_tag_that_decoding_needs_must_be_readable(tag: int) -> None:
    assert f"its tag {tag} cannot be read" in refusal(tiff_of(quarters(GRAYS), tags={tag: (99, b"\1\0\0\0")}))


def test_the_number_of_values_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiff_of(quarters(GRAYS), rows_per_strip=1)
    assert centres(decoded(data)) == list(GRAYS)
    monkeypatch.setattr(tiff_tags, "MAX_VALUES", 100)
    assert "cannot be read" in refusal(data)


@pytest.mark.parametrize("side", [7_100, 60_000])
def test_too_many_pixels_are_refused_by_the_header(side: int) -> None:
    for dtype in (np.uint8, np.float64):
        data = tiff_of(
            np.zeros((1, 8), dtype), sample_format=3 if dtype is np.float64 else 1,
            tags={256: (4, (side,)), 257: (4, (side,)), 278: (4, (side,))},
        )  # fmt: skip
        assert "over the limit of 50,000,000" in refusal(data)


def test_offsets_beyond_4_gib_are_refused() -> None:
    data = tiff_of(quarters(GRAYS), big=True, rows_per_strip=HEIGHT, tags={273: (16, (1 << 33,))})
    assert "beyond 4 GiB" in refusal(data)


def test_the_directory_says_what_the_file_holds() -> None:
    directory = read_directory(tiff_of(quarters(GRAYS, np.uint16), order=">", tags={274: (3, (8,))}))
    assert (directory.order, directory.orientation, directory.more) == (">", 8, False)
    assert [directory.number(tag, 7) for tag in (256, 257, 258, 284)] == [96, 64, 16, 7]
