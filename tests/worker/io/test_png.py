import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from sd_core.errors import InvalidImage
from tests.support.image_files import (
    BLUE,
    GREEN,
    HEIGHT,
    RED,
    SIZE,
    WIDTH,
    YELLOW,
    centres,
    chunk,
    coloured_quarters,
    exif_of,
    frame_control,
    frame_data,
    png_of,
    png_of_pixels,
    png_rows,
    quarters,
)  # fmt: skip
from tests.support.pictures import file_of
from worker.io import png
from worker.io.frames import BLACK
from worker.io.pictures import decode_picture

COLOURS = [RED, GREEN, BLUE, YELLOW]
PIXELS = quarters(COLOURS)

LARGE = zlib.compress(b"\0" * 3_000_000)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(decode_picture(data).image)


ANCILLARY = {
    "pHYs short": chunk(b"pHYs", b"\0\x32"),
    "pHYs empty": chunk(b"pHYs", b""),
    "gAMA short": chunk(b"gAMA", b"\0"),
    "gAMA zero": chunk(b"gAMA", bytes(4)),
    "cHRM short": chunk(b"cHRM", b"\0" * 7),
    "sRGB empty": chunk(b"sRGB", b""),
    "tIME short": chunk(b"tIME", b"\0"),
    "tIME impossible": chunk(b"tIME", b"\xff" * 7),
    "bKGD short": chunk(b"bKGD", b"\0"),
    "sBIT long": chunk(b"sBIT", b"\xff" * 9),
    "hIST alone": chunk(b"hIST", b"\0\1"),
    "sPLT damaged": chunk(b"sPLT", b"name\0\x10"),
    "iCCP no zlib": chunk(b"iCCP", b"name\0\0junk"),
    "iCCP large": chunk(b"iCCP", b"name\0\0" + LARGE),
    "iCCP empty": chunk(b"iCCP", b""),
    "zTXt large": chunk(b"zTXt", b"Comment\0\0" + LARGE),
    "zTXt method": chunk(b"zTXt", b"Comment\0\7" + LARGE),
    "zTXt cut": chunk(b"zTXt", b"Comment\0\0" + LARGE[:20]),
    "iTXt large": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LARGE),
    "iTXt short": chunk(b"iTXt", b"Comment\0"),
    "iTXt no UTF-8": chunk(b"iTXt", b"Comment\0\0\0\0\0\xff\xfe"),
    "tEXt checksum": chunk(b"tEXt", b"Comment\0hello", checksum=1),
    "tEXt large": chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000),
    "unknown": chunk(b"vpAg", b"\1\2\3"),
    "unknown checksum": chunk(b"prVt", b"\1\2\3", checksum=1),
    "eXIf garbage": chunk(b"eXIf", b"\0\x08\0\2junk"),
    "eXIf empty": chunk(b"eXIf", b""),
    "raw profile": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  zz\nnothex\n"),
    "raw profile large": chunk(b"zTXt", b"Raw profile type exif\0\0" + LARGE),
    "acTL short": chunk(b"acTL", b"\0\0\0\2"),
    "acTL empty animation": chunk(b"acTL", bytes(8)),
    "acTL checksum": chunk(b"acTL", b"\0\0\0\2\0\0\0\0", checksum=1),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", ANCILLARY)
def test_ancillary_chunks_do_not_matter(name: str, place: str) -> None:
    before, after = (ANCILLARY[name], b"") if place == "before" else (b"", ANCILLARY[name])
    picture = decode_picture(png_of_pixels(PIXELS, before=before, after=after))
    assert centres(np.asarray(picture.image)) == COLOURS
    assert picture.warnings == ()


def test_chunks_between_and_cut_after_the_image_data_do_not_matter() -> None:
    stream = zlib.compress(png_rows(PIXELS, 8))
    parts = chunk(b"IDAT", stream[:40]) + ANCILLARY["tEXt checksum"] + chunk(b"IDAT", stream[40:])
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">2I5B", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    assert centres(decoded(head + parts)) == COLOURS  # no IEND either
    assert centres(decoded(head + parts + ANCILLARY["zTXt large"][:30])) == COLOURS
    with pytest.raises(InvalidImage):
        decode_picture(head + chunk(b"IDAT", stream[:40]) + chunk(b"IEND", b""))
    with pytest.raises(InvalidImage, match="its IDAT chunk is damaged"):
        decode_picture((head + parts)[:-20])


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_damage_in_a_chunk_that_decoding_needs_is_refused(kind: bytes) -> None:
    rows = (b"\0" + bytes([0, 1] * 32)) * 8
    data = png_of(64, 8, colour=3, rows=rows, before=chunk(b"PLTE", bytes([*RED, *BLUE])) + chunk(b"tRNS", b"\xff"))
    assert decoded(data)[0, 1].tolist() == list(BLUE)
    at = data.index(kind) + 5
    with pytest.raises(InvalidImage, match=f"its {kind.decode()} chunk is damaged"):
        decode_picture(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_a_transparent_colour_of_the_wrong_length_is_refused() -> None:
    for clear in (b"", b"\0\1\0"):
        with pytest.raises(InvalidImage):
            decode_picture(png_of_pixels(PIXELS, before=chunk(b"tRNS", clear)))


@pytest.mark.parametrize("missing", [1, 9, 63, 64])
def test_missing_rows_are_refused(missing: int) -> None:
    rows = png_rows(PIXELS, 8)
    data = png_of(WIDTH, HEIGHT, 8, 2, rows[: len(rows) - missing * (1 + 3 * WIDTH)])
    with pytest.raises(InvalidImage, match="rows of pixels are missing"):
        decode_picture(data)
    with pytest.raises(InvalidImage, match="rows of pixels are missing"):
        decode_picture(png_of(WIDTH, HEIGHT, 8, 2, rows[:-1]))


def test_a_file_without_a_header_is_refused() -> None:
    data = png_of_pixels(PIXELS)
    for broken in (data[:8], data[:8] + data[33:], data[:20]):
        with pytest.raises(InvalidImage, match=r"header|damaged"):
            decode_picture(broken)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("keyword", [b"Comment", b"Raw profile type exif", b"XML:com.adobe.xmp"])
def test_a_bomb_in_a_chunk_is_not_expanded(kind: bytes, keyword: bytes) -> None:
    rest = b"\1\0\0\0" if kind == b"iTXt" else b"\0"
    body = keyword + b"\0" + rest + zlib.compress(bytes(50_000_000))
    data = png_of_pixels(PIXELS, before=chunk(kind, body) * 3)
    tracemalloc.start()
    assert centres(decoded(data)) == COLOURS
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_file_of_very_many_chunks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "MAX_CHUNKS", 100)
    assert centres(decoded(png_of_pixels(PIXELS, before=ANCILLARY["unknown"] * 97))) == COLOURS
    with pytest.raises(InvalidImage, match="more than 100 chunks"):
        decode_picture(png_of_pixels(PIXELS, before=ANCILLARY["unknown"] * 98))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_gray(depth: int) -> None:
    top = (1 << depth) - 1
    levels = [0, 0, top, top] if depth == 1 else [top // 3, top // 2, top, 0]
    scale = 255 / top
    for clear in set(levels):
        data = png_of_pixels(quarters(levels, np.uint16), depth, before=chunk(b"tRNS", struct.pack(">H", clear)))
        expected = [255 if level == clear else round(level * scale) for level in levels]
        assert centres(decoded(data)) == expected


def test_bits_above_the_depth_of_a_transparent_level_are_ignored() -> None:
    data = png_of_pixels(quarters([2, 7, 10, 15]), 4, before=chunk(b"tRNS", struct.pack(">H", 0xFF07)))
    assert centres(decoded(data)) == [34, 255, 170, 255]
    data = png_of_pixels(PIXELS, before=chunk(b"tRNS", struct.pack(">3H", *(0xFF00 | level for level in RED))))
    assert centres(decoded(data)) == [255, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("interlaced", [False, True])
def test_the_transparent_colour_of_16_bits_is_one_of_many_alike(interlaced: bool) -> None:
    wide = PIXELS.astype(np.uint16) * 256 + 7
    wide[: HEIGHT // 2, : WIDTH // 2, 2] += 1  # red with one low byte that differs
    wide[HEIGHT // 2 :, : WIDTH // 2] = wide[0, 0] - np.array([0, 0, 1], np.uint16)
    clear = chunk(b"tRNS", struct.pack(">3H", *wide[0, 0].tolist()))
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        rows = b"".join(png_rows(wide[y::dy, x::dx], 16) for x, y, dx, dy in passes)
        header = chunk(b"IHDR", struct.pack(">2I5B", WIDTH, HEIGHT, 16, 2, 0, 0, 1))
        data = b"\x89PNG\r\n\x1a\n" + header + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    else:
        data = png_of_pixels(wide, 16, before=clear)
    assert centres(decoded(data)) == [255, GREEN, RED, YELLOW]
    assert centres(np.asarray(decode_picture(data, BLACK).image)) == [0, GREEN, RED, YELLOW]


HIDDEN = np.full((HEIGHT, WIDTH, 3), 9, np.uint8)
OTHER = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)


def animation(frames: int, body: bytes) -> bytes:
    return chunk(b"acTL", struct.pack(">2I", frames, 0)) + body


def test_the_first_frame_is_the_animations_where_the_default_image_is_hidden() -> None:
    frames = frame_control(0, *SIZE) + frame_data(1, PIXELS) + frame_control(2, *SIZE) + frame_data(3, OTHER)
    picture = decode_picture(png_of_pixels(HIDDEN, before=animation(2, b""), after=frames))
    assert centres(np.asarray(picture.image)) == COLOURS
    assert picture.warnings == ("image is animated: its first frame was used",)


def test_the_first_frame_is_the_default_image_where_that_is_part_of_the_animation() -> None:
    frames = frame_control(1, *SIZE) + frame_data(2, OTHER)
    picture = decode_picture(png_of_pixels(PIXELS, before=animation(2, frame_control(0, *SIZE)), after=frames))
    assert centres(np.asarray(picture.image)) == COLOURS
    assert picture.warnings == ("image is animated: its first frame was used",)


def test_a_frame_in_several_chunks_smaller_than_its_canvas_lies_on_white() -> None:
    small = np.full((32, 48, 3), 77, np.uint8)
    stream = zlib.compress(png_rows(small, 8))
    data = chunk(b"fdAT", b"\0\0\0\1" + stream[:9]) + chunk(b"fdAT", b"\0\0\0\2" + stream[9:])
    frames = frame_control(0, 48, 32, 48, 32) + data + frame_control(3, *SIZE) + frame_data(4, OTHER)
    file = png_of_pixels(HIDDEN, before=animation(2, b""), after=frames)
    assert centres(decoded(file)) == [255, 255, 255, 77]
    assert centres(np.asarray(decode_picture(file, BLACK).image)) == [0, 0, 0, 77]


def test_only_damage_in_the_frame_that_is_used_matters() -> None:
    frames = frame_control(0, *SIZE) + frame_data(1, PIXELS) + frame_control(2, *SIZE) + frame_data(3, OTHER)
    data = bytearray(png_of_pixels(HIDDEN, before=animation(2, b""), after=frames))
    used, unused, hidden = data.index(b"fdAT") + 12, data.rindex(b"fdAT") + 12, data.index(b"IDAT") + 8
    for place, matters in ((used, True), (unused, False), (hidden, False)):
        broken = data.copy()
        broken[place] ^= 1
        if matters:
            with pytest.raises(InvalidImage, match="its fdAT chunk is damaged"):
                decode_picture(bytes(broken))
        else:
            assert centres(decoded(bytes(broken))) == COLOURS


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (frame_control(0, *SIZE, x=1) + frame_data(1, PIXELS), "not fit its canvas"),
        (chunk(b"fcTL", bytes(25)) + frame_data(1, PIXELS), "no valid fcTL"),
        (frame_control(0, *SIZE), "broken or truncated"),
        (frame_control(0, *SIZE)[:-1] + b"\0" + frame_data(1, PIXELS), "its fcTL chunk is damaged"),
        (frame_control(0, *SIZE) + frame_data(1, PIXELS[:9]), "broken or truncated"),
        (frame_control(0, 0, 0) + frame_data(1, PIXELS), "not fit its canvas"),
    ],
)
def test_a_first_frame_that_is_not_one_is_refused(frame: bytes, reason: str) -> None:
    with pytest.raises(InvalidImage, match=reason):
        decode_picture(png_of_pixels(HIDDEN, before=animation(2, b""), after=frame))


def test_pillows_own_files_with_transparency_decode_as_before() -> None:
    image = coloured_quarters().convert("RGBA")
    image.putalpha(128)
    assert decoded(file_of(image))[0, 0].tolist() == pytest.approx([(level + 255) // 2 for level in RED], abs=1)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_orientation_of_a_raw_profile(compressed: bool) -> None:
    block = b"Exif\0\0" + exif_of(6)
    text = b"\nexif\n%8d\n" % len(block) + b"\n".join(bytes([digit]) for digit in block.hex().encode()) + b"\n"
    if compressed:
        profile = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    else:
        profile = chunk(b"tEXt", b"Raw profile type exif\0" + text)
    assert centres(decoded(png_of_pixels(PIXELS, before=profile))) == [BLUE, RED, YELLOW, GREEN]
