import base64
import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sd_core.errors import InvalidImage
from worker.io import pictures as inputs
from worker.io.pictures import decode_base64, decode_picture, is_url

RED, GREEN, BLUE = (220, 40, 40), (40, 170, 70), (50, 90, 220)


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


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
    assert_halves(decoded(png_of(64, 32, depth=16, colour_type=2, rows=(b"\0" + pixel * 64) * 32)), RED, RED, 1)


def test_floating_point_levels() -> None:
    for white, scale in ((1.0, 1.0), (255.0, 255.0)):
        levels = np.full((32, 64), 0.4 * scale, np.float32)
        levels[:, 32:] = white
        assert_halves(decoded(file_of(Image.fromarray(levels), "TIFF")), (102,) * 3, (255,) * 3)
    with pytest.raises(InvalidImage, match="not finite"):
        decode_picture(file_of(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"))


def test_transparency_is_laid_on_white() -> None:
    assert_halves(decoded(file_of(halves((*RED, 255), (*BLUE, 0), "RGBA"))), RED, (255, 255, 255))
    half_clear = decoded(file_of(Image.new("RGBA", (64, 32), (0, 0, 0, 128))))
    assert_halves(half_clear, (127,) * 3, (127,) * 3, within=1)


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotated_picture_is_turned_upright(orientation: int) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste(RED, (0, 0, 32, 16))  # the top left quarter
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(file_of(stored, exif=exif)), np.asarray(upright))


def png_of(width: int, height: int, depth: int = 8, colour_type: int = 0, rows: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">2I5B", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [7_100, 10_000, 20_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    def decoding(*_args: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoding)
    with pytest.raises(InvalidImage, match="50,000,000"):
        decode_picture(png_of(side, side, rows=b"\0" * 1000))


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    data = file_of(halves(RED, BLUE))
    bomb = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 70_000_000, 9))
    with pytest.raises(InvalidImage, match="broken"):
        decode_picture(data[:33] + bomb + data[33:])


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused(file_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = file_of(Image.fromarray(noise), file_format)
    with pytest.raises(InvalidImage, match=r"broken or truncated|no picture"):
        decode_picture(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"hello", b"%PDF-1.7", b"<svg/>", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=f"{len(data)} bytes are no picture of a known format"):
        decode_picture(data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_a_picture_with_flipped_bytes_is_a_picture_or_an_invalid_image(file_format: str, data: Any) -> None:
    content = bytearray(file_of(halves(RED, BLUE), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidImage):
        assert decode_picture(bytes(content)).image.mode == "RGB"


@pytest.mark.parametrize("wrap", ["{}", "data:image/png;base64,{}", "DATA:;BASE64,{}", " {}\n"])
def test_base64_and_data_uris(wrap: str) -> None:
    data = bytes(range(256))
    assert decode_base64(wrap.format(base64.b64encode(data).decode())) == data
    assert decode_base64(wrap.format(base64.encodebytes(data).decode())) == data


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("not base64!!", "12 characters is no base64"),
        ("aGk", "no base64"),
        ("héllo", "no base64"),
        ("data:image/png,rawbytes", "data URI is not one of base64"),
        ("data:image/png;base64", "data URI is not one of base64"),
        ("data:image/png;base64,", "holds no bytes"),
        ("file:///etc/passwd", "begins with http:// or https://, not 'file'"),
        ("   ", "holds no bytes"),
    ],
)
def test_what_is_no_base64_is_refused(source: str, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        decode_base64(source)


def test_a_picture_file_of_too_many_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_BYTES", 1000)
    assert len(decode_base64(base64.b64encode(bytes(1000)).decode())) == 1000
    for size in (1001, 5000):
        with pytest.raises(InvalidImage, match="over the limit of 1,000"):
            decode_base64(base64.b64encode(bytes(size)).decode())


def test_urls_are_told_from_base64() -> None:
    assert is_url("https://example.com/x.png")
    assert is_url("HTTP://example.com/x.png")
    assert not is_url("httpabcd")
    assert not is_url("ftp://example.com/x.png")
