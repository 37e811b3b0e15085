import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd_core.errors import InvalidImage
from tests.support.image_files import png_of
from tests.support.pictures import file_of
from worker.io.frames import BLACK, WHITE
from worker.io.pictures import decode_picture

RED, GREEN, BLUE = (220, 40, 40), (40, 170, 70), (50, 90, 220)


def decoded(data: bytes) -> np.ndarray:
    picture = decode_picture(data).image
    assert picture.mode == "RGB"
    return np.asarray(picture)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (64, 32), left)
    image.paste(right, (32, 0, 64, 32))
    return image


def assert_halves(pixels: np.ndarray, left: tuple[int, ...], right: tuple[int, ...], within: int = 0) -> None:
    for half, colour in ((pixels[:, :24], left), (pixels[:, 40:], right)):
        assert np.abs(half.astype(int) - np.array(colour)).max() <= within


@pytest.mark.parametrize(
    ("file_format", "within"), [("PNG", 0), ("JPEG", 8), ("WEBP", 12), ("BMP", 0), ("TIFF", 0), ("GIF", 0)]
)
def test_the_usual_formats(file_format: str, within: int) -> None:
    assert_halves(decoded(file_of(halves(RED, BLUE), file_format)), RED, BLUE, within)


def test_formats_that_are_not_listed_are_refused() -> None:
    with pytest.raises(InvalidImage, match="not an image of a known format"):
        decode_picture(file_of(halves(RED, BLUE), "PPM"))


def test_cmyk_becomes_rgb() -> None:
    inks = Image.merge("CMYK", [Image.new("L", (64, 32), level) for level in (0, 255, 255, 0)])
    assert_halves(decoded(file_of(inks, "JPEG", quality=95)), (255, 0, 0), (255, 0, 0), within=6)


def test_grayscale_and_gray_with_alpha() -> None:
    assert_halves(decoded(file_of(Image.new("L", (64, 32), 90))), (90,) * 3, (90,) * 3)
    assert_halves(decoded(file_of(halves((90, 255), (90, 0), "LA"))), (90,) * 3, (255,) * 3)
    assert_halves(decoded(file_of(Image.new("1", (64, 32), 1))), (255,) * 3, (255,) * 3)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(file_format: str) -> None:
    levels = np.zeros((32, 64), np.uint16)
    levels[:, :32], levels[:, 32:] = 100 * 257, 65535
    assert_halves(decoded(file_of(Image.fromarray(levels), file_format)), (100,) * 3, (255,) * 3)


def test_sixteen_bit_gray_with_a_transparent_level() -> None:
    levels = np.full((32, 64), 50 * 257, np.uint16)
    levels[:, 32:] = 1000
    data = file_of(Image.fromarray(levels), transparency=1000)
    assert_halves(decoded(data), (50,) * 3, (255,) * 3)


def test_sixteen_bit_colour() -> None:
    pixel = struct.pack(">3H", 220 * 257, 40 * 257, 40 * 257)
    assert_halves(decoded(png_of(64, 32, 16, 2, (b"\0" + pixel * 64) * 32)), RED, RED, 1)


def test_transparency_is_laid_on_white() -> None:
    assert_halves(decoded(file_of(halves((*RED, 255), (*BLUE, 0), "RGBA"))), RED, (255, 255, 255))
    half_clear = decoded(file_of(Image.new("RGBA", (64, 32), (0, 0, 0, 128))))
    assert_halves(half_clear, (127,) * 3, (127,) * 3, within=1)


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "WEBP", "TIFF"])
def test_transparency_is_laid_on_the_ground_that_the_caller_wants(file_format: str) -> None:
    lossless = {"WEBP": {"lossless": True, "exact": True}}.get(file_format, {})
    data = file_of(halves((*RED, 255), (*BLUE, 0), "RGBA"), file_format, **lossless)
    for ground in (BLACK, WHITE):
        assert_halves(np.asarray(decode_picture(data, ground).image), RED, (ground,) * 3, within=2)


def test_a_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (64, 32), 0)
    palette.putpalette([*RED, *BLUE, *GREEN])
    palette.paste(1, (32, 0, 64, 32))
    assert_halves(decoded(file_of(palette)), RED, BLUE)
    assert_halves(decoded(file_of(palette, transparency=1)), RED, (255, 255, 255))
    assert_halves(decoded(file_of(palette, transparency=b"\xff\x00\xff")), RED, (255, 255, 255))
    assert_halves(decoded(file_of(palette, "GIF", transparency=0)), (255, 255, 255), BLUE)


def test_an_rgb_png_with_a_transparent_colour() -> None:
    assert_halves(decoded(file_of(halves(RED, BLUE), transparency=BLUE)), RED, (255, 255, 255))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(file_format: str) -> None:
    frames = [Image.new("RGB", (64, 32), colour) for colour in (RED, BLUE)]
    data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:])
    picture = decode_picture(data)
    assert_halves(np.asarray(picture.image), RED, RED, within=6)
    assert picture.warnings == ("image is animated: its first frame was used",)


def test_a_still_picture_needs_no_warning() -> None:
    assert decode_picture(file_of(halves(RED, BLUE))).warnings == ()


@pytest.mark.parametrize("side", [7_100, 10_000, 20_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    def decoding(*_args: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoding)
    with pytest.raises(InvalidImage, match="50,000,000"):
        decode_picture(png_of(side, side, rows=b"\0" * 1000))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), file_format)
    with pytest.raises(InvalidImage, match=r"broken or truncated|not an image"):
        decode_picture(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"%PDF-1.7",
        b"<svg/>",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0" * 100,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_what_is_not_an_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=f"{len(data)} bytes are not an image of a known format"):
        decode_picture(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_a_picture_with_flipped_bytes_is_a_picture_or_an_invalid_image(file_format: str, data: Any) -> None:
    content = bytearray(file_of(halves(RED, BLUE), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidImage):
        assert decode_picture(bytes(content)).image.mode == "RGB"
