import struct

import numpy as np
import pytest
from PIL import Image

from sd_core.errors import InvalidImage
from tests.support.image_files import BLUE, GREEN, RED, YELLOW, centres, coloured_quarters, exif_of
from tests.support.pictures import file_of
from worker.io import webp
from worker.io.pictures import decode_picture

STORED, TURNED = [RED, GREEN, BLUE, YELLOW], [BLUE, RED, YELLOW, GREEN]
KINDS = {"lossless": {"lossless": True, "exact": True}, "lossy": {"quality": 95}}


def file(kind: str) -> bytes:
    return file_of(coloured_quarters(), "WEBP", exif=exif_of(6), icc_profile=b"x" * 100, xmp=b"<x/>", **KINDS[kind])


def assert_quarters(data: bytes, colours: list[tuple[int, ...]]) -> None:
    found = centres(np.asarray(decode_picture(data).image))
    assert np.abs(np.array(found) - np.array(colours)).max() <= 4


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_that_is_cut_or_missing_does_not_matter(kind: str) -> None:
    data = file(kind)
    exif = data.index(b"EXIF")
    assert_quarters(data, TURNED)
    assert_quarters(data[:-2], TURNED)
    assert_quarters(data[: exif + 12], STORED)
    assert_quarters(data[:exif], STORED)
    assert_quarters(data + b"trailing bytes", TURNED)


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_that_lie_about_metadata_do_not_matter(kind: str) -> None:
    data = file(kind)
    exif = data.index(b"EXIF")
    assert_quarters(data[: exif + 4] + struct.pack("<I", 99_999) + data[exif + 8 :], TURNED)
    for size in (0, exif - 8, 10**6):
        assert_quarters(data[:4] + struct.pack("<I", size) + data[8:], TURNED)
    assert_quarters(data[:exif] + b"ABCD" + struct.pack("<I", 3) + b"xyz\0" + data[exif:], TURNED)


@pytest.mark.parametrize("kind", KINDS)
def test_image_data_that_are_cut_are_refused(kind: str) -> None:
    for data in (file(kind), file_of(coloured_quarters(), "WEBP", **KINDS[kind])):
        end = data.find(b"EXIF") if b"EXIF" in data else len(data)
        for length in (12, 16, 30, end // 2, end - 3):
            with pytest.raises(InvalidImage):
                decode_picture(data[:length])


def test_transparency_and_the_first_frame_of_an_animation() -> None:
    clear = coloured_quarters().convert("RGBA")
    clear.paste((1, 2, 3, 0), (0, 0, 48, 32))
    picture = decode_picture(file_of(clear, "WEBP", lossless=True, exact=True))
    assert centres(np.asarray(picture.image)) == [255, GREEN, BLUE, YELLOW]
    frames = [coloured_quarters(), Image.new("RGB", (96, 64), "black")]
    data = file_of(frames[0], "WEBP", lossless=True, exif=exif_of(6), save_all=True, append_images=frames[1:])
    picture = decode_picture(data)
    assert centres(np.asarray(picture.image)) == TURNED
    assert picture.warnings == ("image is animated: its first frame was used",)


def test_a_file_of_very_many_chunks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webp, "MAX_CHUNKS", 100)
    data = file("lossless")
    assert_quarters(data + b"ABCD\0\0\0\0" * 90, TURNED)
    with pytest.raises(InvalidImage, match="more than 100 chunks"):
        decode_picture(data + b"ABCD\0\0\0\0" * 100)
