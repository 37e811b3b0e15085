"""EXIF in every format that carries it: damage is ignored, and the orientation is used where it can be read."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.image_files import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    centres,
    chunk,
    coloured_quarters,
    exif_header,
    exif_of,
    png_of_pixels,
    quarters,
    segment,
    with_segments,
)  # fmt: skip
from tests.support.pictures import file_of
from worker.io.exif import orientation_of, unpack_raw_profile
from worker.io.pictures import decode_picture

PIXELS = quarters([RED, GREEN, BLUE, YELLOW])

STORED, TURNED = [RED, GREEN, BLUE, YELLOW], [BLUE, RED, YELLOW, GREEN]  # as stored, and by orientation 6
JPEG = file_of(coloured_quarters(), "JPEG", quality=95, subsampling=0)


def raw_profile(exif: bytes) -> bytes:
    text = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"
    return png_of_pixels(PIXELS, before=chunk(b"tEXt", b"Raw profile type exif\0" + text))


def webp(exif: bytes) -> bytes:
    return file_of(coloured_quarters(), "WEBP", lossless=True, exif=exif)


LAYOUTS: dict[str, Callable[[bytes], bytes]] = {
    "PNG eXIf": lambda exif: png_of_pixels(PIXELS, before=chunk(b"eXIf", exif)),
    "PNG eXIf at the end": lambda exif: png_of_pixels(PIXELS, after=chunk(b"eXIf", exif)),
    "PNG eXIf with header": lambda exif: png_of_pixels(PIXELS, before=chunk(b"eXIf", b"Exif\0\0" + exif)),
    "PNG raw profile": raw_profile,
    "JPEG": lambda exif: with_segments(JPEG, segment(0xE1, b"Exif\0\0" + exif)),
    "JPEG header twice": lambda exif: with_segments(JPEG, segment(0xE1, b"Exif\0\0Exif\0\0" + exif)),
    "WebP": webp,
    "WebP with header": lambda exif: webp(b"Exif\0\0" + exif),
}


def entry(tag: int, kind: int, count: int, value: int, order: str = "<") -> bytes:
    return struct.pack(order + "HHII", tag, kind, count, value)


XRES, EXIF_IFD, GPS = 282, 34665, 34853
READABLE = {
    "plain": exif_of(6),
    "big endian": exif_of(6, ">"),
    "orientation as LONG": exif_of(6, kind=4),
    "orientation as BYTE": exif_of(6, kind=1),
    "rational beyond the end": exif_of(6, entries=[entry(XRES, 5, 1, 9_999_999)]),
    "rational over zero": exif_of(6, entries=[entry(XRES, 5, 1, 8)]),
    "resolution as BYTE": exif_of(6, entries=[entry(XRES, 1, 1, 72)]),
    "resolution as ASCII": exif_of(6, entries=[entry(XRES, 2, 4, 0x32373200)]),
    "unknown type": exif_of(6, entries=[entry(XRES, 99, 1, 0)]),
    "huge count": exif_of(6, entries=[entry(XRES, 3, 0xFFFFFFFF, 8)]),
    "directory that contains itself": exif_of(6, entries=[entry(EXIF_IFD, 4, 1, 8)]),
    "GPS beyond the end": exif_of(6, entries=[entry(GPS, 4, 1, 0xFFFFFFF0)]),
    "more entries than stated": exif_of(6)[:8] + b"\xff\x7f" + exif_of(6)[10:],
    "cut after the orientation": exif_of(6)[:22],
}
UNREADABLE = {
    "empty": b"",
    "garbage": b"\0\x08\0\2junk",
    "header alone": exif_header(),
    "directory beyond the end": b"II*\0\xf0\xff\xff\xff",
    "cut within the orientation": exif_of(6)[:19],
    "orientation of rational type": exif_of(6, kind=5),
    "orientation of 0": exif_of(0),
    "orientation of 9": exif_of(9),
    "wrong byte order mark": b"XX" + exif_of(6)[2:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", READABLE)
def test_the_orientation_is_used_where_it_can_be_read(name: str, layout: str) -> None:
    pixels = np.asarray(decode_picture(LAYOUTS[layout](READABLE[name])).image)
    assert pixels.shape == (96, 64, 3)
    assert np.abs(np.array(centres(pixels)) - np.array(TURNED)).max() <= 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UNREADABLE)
def test_exif_that_cannot_be_read_is_ignored(name: str, layout: str) -> None:
    pixels = np.asarray(decode_picture(LAYOUTS[layout](UNREADABLE[name])).image)
    assert pixels.shape == (64, 96, 3)
    assert np.abs(np.array(centres(pixels)) - np.array(STORED)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_in_every_format(file_format: str, orientation: int) -> None:
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
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(file_format, {})
    pixels = np.asarray(decode_picture(file_of(stored, file_format, exif=exif, **lossless)).image)
    assert pixels.shape == (32, 64, 3)
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 1


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def test_xmp_has_the_orientation_where_exif_has_none() -> None:
    assert orientation_of(None, XMP) == 6
    assert orientation_of(b"junk", b"<tiff:Orientation>3</tiff:Orientation>") == 3
    assert orientation_of(exif_of(8), XMP) == 8
    assert orientation_of(None, b'tiff:Orientation="9"') == 1
    jpeg = with_segments(JPEG, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP))
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    for data in (jpeg, png_of_pixels(PIXELS, before=text)):
        assert decode_picture(data).image.size == (64, 96)


@given(st.binary(max_size=200), st.integers(0, 40), st.integers(0, 255))
def test_no_bytes_make_it_fail(junk: bytes, place: int, value: int) -> None:
    damaged = bytearray(exif_of(6))
    damaged[place % len(damaged)] = value
    for exif in (junk, b"II*\0\x08\0\0\0" + junk, bytes(damaged)):
        assert 1 <= orientation_of(exif, junk) <= 8
    unpack_raw_profile(junk)


def test_a_raw_profile_is_read_up_to_its_damage() -> None:
    assert unpack_raw_profile(b"\nexif\n    4\n0a0b\n0c0d\n") == b"\x0a\x0b\x0c\x0d"
    assert unpack_raw_profile(b"\nAPP1\n 4\n0a0b0czz") == b"\x0a\x0b\x0c"
    assert unpack_raw_profile(b"\nexif\n  zz\nnothex\n") == b""
