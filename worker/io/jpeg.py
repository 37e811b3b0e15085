"""JPEG: decoded from a file reduced to the segments that decoding needs, with or without its end marker.

Application segments and comments are dropped before Pillow reads the file, except the two that say how colours are
stored (JFIF's APP0, Adobe's APP14): damage in the others does not matter. Specification: ITU-T T.81, annex B.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from sd_core.errors import InvalidImage
from worker.io.exif import HEADER, orientation_of
from worker.io.frames import Frame, flattened, open_image

START, END = b"\xff\xd8", b"\xff\xd9"
SCAN, END_MARKER, COMMENT, EXIF, ADOBE = 0xDA, 0xD9, 0xFE, 0xE1, 0xEE  # XMP is in EXIF's segments, too
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
APPLICATION = range(0xE0, 0xF0)
BASELINE_FRAMES, PROGRESSIVE_FRAMES = frozenset({0xC0, 0xC1}), frozenset({0xC2})
XMP = b"http://ns.adobe.com/xap/1.0/\0"

MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # not the stuffed zeros and restart markers of a scan
MAX_SEGMENTS = 100_000
# Varied bytes, none of them 0xff. A decoder fills up with zeros, so these begin with other bits: 1010, 0101, 1100.
PROBES = tuple(bytes((first + 37 * index) % 255 for index in range(256)) for first in (0xA5, 0x5A, 0xC3))
COMPARED_ROWS = 256


@dataclass(frozen=True)
class Segment:
    marker: int
    start: int  # of its marker
    body: bytes
    end: int


def first_frame(data: bytes, ground: int) -> Frame:
    """A JPEG file -> its image. Raises `InvalidImage`, or what Pillow raises."""
    kept, exif, xmp = [START], None, None
    for segment in _segments(data):
        if segment.marker == SCAN:
            break
        body = segment.body
        if segment.marker == EXIF and body.startswith(HEADER):
            exif = exif or body
        elif segment.marker == EXIF and body.startswith(XMP):
            xmp = xmp or body
        if _is_decoded_with(segment):
            kept.append(data[segment.start : segment.end])
    else:
        raise InvalidImage("image: the JPEG is broken or truncated: it holds no image data")
    reduced = b"".join(kept) + data[segment.start :]
    return Frame(flattened(_decode(reduced), ground), orientation_of(exif, xmp))


def exif_of(data: bytes) -> bytes:
    """The first EXIF block of a JPEG file; empty if there is none. Raises `InvalidImage` for too many segments."""
    return next((s.body for s in _segments(data) if s.marker == EXIF and s.body.startswith(HEADER)), b"")


def _segments(data: bytes) -> Iterator[Segment]:
    """The marker segments up to the end marker. What stands between them is skipped, as libjpeg does; so is a length
    that is too small to be one."""
    offset = len(START)
    for _ in range(MAX_SEGMENTS):
        found = MARKER.search(data, offset)
        if found is None or found[1][0] == END_MARKER:
            return
        marker, offset = found[1][0], found.end()
        if marker in STANDALONE:
            continue
        length = int.from_bytes(data[offset : offset + 2], "big")
        end = offset + max(length, 2)
        if end > len(data):
            return
        yield Segment(marker, found.start(), data[offset + 2 : end], end)
        offset = end
    raise InvalidImage(f"image: the JPEG has more than {MAX_SEGMENTS:,} segments")


def _is_decoded_with(segment: Segment) -> bool:
    if segment.marker == 0xE0:
        return segment.body.startswith(b"JFIF\0") and len(segment.body) >= 14
    if segment.marker == ADOBE:
        return segment.body.startswith(b"Adobe") and len(segment.body) >= 12
    return segment.marker not in APPLICATION and segment.marker != COMMENT


def _decode(data: bytes) -> Image.Image:
    try:
        return _load(data)
    except OSError:
        pass  # the pixels decoded so far are released before the file is decoded anew
    return _decode_without_end(data)


def _load(data: bytes) -> Image.Image:
    image = open_image(data, "JPEG")
    image.load()
    return image


def _decode_without_end(data: bytes) -> Image.Image:
    """Decode a file that lacks its end marker but no image data; raise `InvalidImage` if image data is missing.

    The decoder itself completes a cut scan silently. But bytes appended to a complete scan change no pixel, while in a
    cut one they are decoded in place of the missing ones. So each way to end the file must give the same pixels.
    """
    data = data.rstrip(b"\xff")
    if not _has_all_scans(data):
        raise _cut()
    try:
        image = _load(data + END)
        for probe in PROBES:
            if not _equal(image, _load(data + probe + END)):
                raise _cut()
    except OSError as error:
        raise _cut() from error
    return image


def _equal(one: Image.Image, other: Image.Image) -> bool:
    for top in range(0, one.height, COMPARED_ROWS):
        box = (0, top, one.width, min(top + COMPARED_ROWS, one.height))
        if one.crop(box).tobytes() != other.crop(box).tobytes():
            return False
    return True


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans that have begun cover each component, and of a progressive file each bit of each coefficient.

    A progressive file whose last scans are missing altogether decodes without an error, only less sharp.
    """
    components: dict[int, list[int]] = {}  # id -> the lowest bit of each coefficient that is known so far
    unknown = 99
    for segment in _segments(data):
        body = segment.body
        if segment.marker in BASELINE_FRAMES | PROGRESSIVE_FRAMES:
            components = {body[6 + 3 * index]: [unknown] * 64 for index in range(body[5])}
        elif segment.marker == SCAN:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            for index in range(count):
                known = components[body[1 + 2 * index]]
                known[first : last + 1] = [bits & 15] * len(known[first : last + 1])
    return bool(components) and all(not any(known) for known in components.values())


def _cut() -> InvalidImage:
    return InvalidImage("image: the JPEG is broken or truncated: image data is missing")
