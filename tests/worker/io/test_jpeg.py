import io

import numpy as np
import pytest
from PIL import Image

from sd_core.errors import InvalidImage
from tests.support.image_files import BLUE, GREEN, RED, YELLOW, centres, coloured_quarters, segment, with_segments
from tests.support.pictures import file_of
from worker.io import jpeg
from worker.io.pictures import decode_picture

JPEG = file_of(coloured_quarters(), "JPEG", quality=95, subsampling=0)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 88, 3), np.uint8))
KINDS = {
    "baseline": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "subsampled": {"subsampling": 2},
    "coarse": {"quality": 5},
    "fine": {"quality": 100, "subsampling": 0},
}


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode_picture(data).image)


def plain(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def assert_quarters(data: bytes) -> None:
    assert np.abs(np.array(centres(decoded(data))) - np.array([RED, GREEN, BLUE, YELLOW])).max() <= 2


SEGMENTS = {
    "Adobe short": segment(0xEE, b"Adobe"),
    "Adobe cut": segment(0xEE, b"Adobe\0\x64\0\0"),
    "JFIF short": segment(0xE0, b"JFIF\0"),
    "JFIF empty": segment(0xE0, b"JFIF"),
    "JFXX": segment(0xE0, b"JFXX\0\x10"),
    "MPF garbage": segment(0xE2, b"MPF\0junk"),
    "ICC cut": segment(0xE2, b"ICC_PROFILE\0\1"),
    "ICC of many": segment(0xE2, b"ICC_PROFILE\0\1\xffxxxx"),
    "FlashPix": segment(0xE2, b"FPXR\0"),
    "Photoshop cut": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
    "Photoshop lies": segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\x7f\xff\xff\xff"),
    "EXIF empty": segment(0xE1, b"Exif\0\0"),
    "XMP empty": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    "comment": segment(0xFE, b"\xff\xd9"),
    "unknown": segment(0xEB, b"\0\1\2"),
    "length of 0": b"\xff\xe5\0\0",
    "length of 1": b"\xff\xe5\0\1",
    "fill bytes": b"\xff\xff\xff",
    "junk between": segment(0xEB, b"") + b"\0\1\2",
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_that_decoding_does_not_need_do_not_matter(name: str) -> None:
    assert_quarters(with_segments(JPEG, SEGMENTS[name]))


def test_the_segments_that_name_the_colours_are_kept() -> None:
    unlabelled = file_of(Image.merge("RGB", NOISE.split()), "JPEG", keep_rgb=True, quality=100)
    assert b"Adobe" in unlabelled
    assert np.abs(decoded(unlabelled).astype(int) - np.asarray(NOISE)).mean() < 2
    inks = Image.merge("CMYK", [Image.new("L", (64, 32), level) for level in (0, 255, 255, 0)])
    assert np.abs(decoded(file_of(inks, "JPEG", quality=95)).astype(int) - np.array((255, 0, 0))).max() <= 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", [NOISE, coloured_quarters(), NOISE.convert("L")], ids=["noise", "flat", "gray"])
def test_a_file_that_lacks_only_its_end_is_whole(kind: str, image: Image.Image) -> None:
    data = file_of(image, "JPEG", **KINDS[kind])
    assert data[-2:] == b"\xff\xd9"
    for ending in (b"", b"\xff", b"\n", b"\0" * 20):
        assert np.array_equal(decoded(data[:-2] + ending), plain(data))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_image_data_are_cut_is_refused(kind: str) -> None:
    data = file_of(NOISE, "JPEG", **KINDS[kind])
    start = data.index(b"\xff\xda")
    # Not fewer than three missing bytes: the last of them may hold nothing but padding.
    for length in [
        *range(start, len(data) - 5, max(1, (len(data) - start) // 40)),
        *range(len(data) - 12, len(data) - 5),
    ]:
        with pytest.raises(InvalidImage, match="broken or truncated"):
            decode_picture(data[:length])


def test_a_progressive_file_cut_between_two_scans_is_refused() -> None:
    data = file_of(NOISE, "JPEG", progressive=True)
    scans = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for scan in scans[1:]:
        tables = data.rfind(b"\xff\xc4", 0, scan)
        for length in {scan, tables}:
            with pytest.raises(InvalidImage, match="broken or truncated"):
                decode_picture(data[:length])


def test_a_file_without_a_scan_is_refused() -> None:
    start = JPEG.index(b"\xff\xda")
    for data in (JPEG[:start], JPEG[:3], JPEG[:start] + b"\xff\xd9", with_segments(JPEG, b"\xff\xe5\xff\xff")[:900]):
        with pytest.raises(InvalidImage):
            decode_picture(data)


def test_a_file_of_very_many_segments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "MAX_SEGMENTS", 100)
    assert_quarters(with_segments(JPEG, segment(0xEB, b"") * 50))
    with pytest.raises(InvalidImage, match="more than 100 segments"):
        decode_picture(with_segments(JPEG, segment(0xEB, b"") * 101))


def test_of_a_file_with_further_views_the_first_is_taken_without_a_warning() -> None:
    data = file_of(coloured_quarters(), "MPO", save_all=True, append_images=[NOISE], quality=95, subsampling=0)
    assert_quarters(data)
    assert decode_picture(data).warnings == ()
