"""TIFF's directory of tags: read from any TIFF or BigTIFF file, written anew with the tags that decoding needs.

Specification: TIFF revision 6.0 and its supplements; BigTIFF by the LibTIFF project.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from sd_core.errors import InvalidImage

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, SAMPLES_PER_PIXEL, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, COLOUR_MAP, TILE_WIDTH, SAMPLE_FORMAT, JPEG_TABLES, XMP = 317, 320, 322, 339, 347, 700

DECODED = frozenset(
    {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, SAMPLES_PER_PIXEL, ROWS_PER_STRIP}
    | {STRIP_BYTES, PLANAR, PREDICTOR, COLOUR_MAP, SAMPLE_FORMAT}
    | {292, 293}  # options of the fax compressions
    | {TILE_WIDTH, 323, 324, 325}  # tiles: width, length, offsets, byte counts
    | {338, JPEG_TABLES, *range(512, 522), *range(529, 533)}  # extra samples; JPEG's tables; YCbCr's layout
)

SHORT, LONG = 3, 4
INTEGERS = {1: "B", SHORT: "H", LONG: "I", 13: "I", 16: "Q", 18: "Q"}
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
AS_BYTES = frozenset({JPEG_TABLES, XMP})  # never numbers, whatever type they are written as
MAX_VALUES = 1 << 19  # of all tags together: twice the tiles of the largest image


@dataclass(frozen=True)
class Raw:
    """A value that is not made of unsigned integers, in the file's own byte order."""

    kind: int
    count: int
    data: bytes


Value = tuple[int, ...] | Raw


@dataclass(frozen=True)
class Directory:
    """The first image of a TIFF file."""

    order: str  # "<" or ">", as in `struct`
    tags: Mapping[int, Value]  # those of `DECODED`
    orientation: int | None  # EXIF's 1..8
    xmp: bytes | None
    more: bool  # whether another image follows

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag of integers."""
        value = self.tags.get(tag)
        return value[0] if isinstance(value, tuple) and value else default


def read_directory(data: bytes) -> Directory:
    """The tags of a file's first image. Raises `InvalidImage` if one that decoding needs cannot be read."""
    try:
        return _Reader(data).directory()
    except struct.error as error:
        raise _broken("its directory of tags is cut") from error


class _Reader:
    """Reads the first directory of a file, of both TIFF's layouts and byte orders."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._big = self._unpack("H", 2) == 43
        self._word = "Q" if self._big else "I"
        self._room = MAX_VALUES

    def directory(self) -> Directory:
        start = self._unpack(self._word, 8 if self._big else 4)
        count_format, size = ("Q", 20) if self._big else ("H", 12)
        first = start + struct.calcsize(count_format)
        end = first + self._unpack(count_format, start) * size
        if end > len(self._data):
            raise _broken("its directory of tags is cut")
        tags: dict[int, Value] = {}
        orientation, xmp = None, None
        for entry in range(first, end, size):
            tag = self._unpack("H", entry)
            if tag in DECODED and tag not in tags:
                value = self._value(tag, entry)
                if value is None:
                    raise _broken(f"its tag {tag} cannot be read")
                tags[tag] = value
            elif tag == ORIENTATION:
                value = self._value(tag, entry)
                orientation = value[0] if isinstance(value, tuple) and 1 <= value[0] <= 8 else None
            elif tag == XMP:
                value = self._value(tag, entry)
                xmp = value.data if isinstance(value, Raw) else None
        more = any(self._data[end : end + struct.calcsize(self._word)])
        return Directory(self._order, tags, orientation, xmp, more)

    def _value(self, tag: int, entry: int) -> Value | None:
        """The value of the entry at this offset; None if its type is unknown or it does not lie within the file."""
        kind, count = self._unpack("H", entry + 2), self._unpack(self._word, entry + 4)
        size = SIZES.get(kind, 0) * count
        place = entry + 4 + struct.calcsize(self._word)
        if size > struct.calcsize(self._word):
            place = self._unpack(self._word, place)
        numbers = kind in INTEGERS and tag not in AS_BYTES
        self._room -= count if numbers else 0
        if not 0 < size <= len(self._data) - place or self._room < 0:
            return None
        if numbers:
            return struct.unpack_from(f"{self._order}{count}{INTEGERS[kind]}", self._data, place)
        return Raw(kind, count, self._data[place : place + size])

    def _unpack(self, layout: str, offset: int) -> int:
        if offset > len(self._data):  # struct takes no offset beyond what an index can be
            raise struct.error
        (number,) = struct.unpack_from(self._order + layout, self._data, offset)
        return int(number)


def with_tags(data: bytes, order: str, tags: Mapping[int, Value]) -> bytes:
    """The same file with one image, of these tags: a new directory at the end, to which a new header points."""
    if any(isinstance(value, tuple) and max(value) >> 32 for value in tags.values()):
        raise _broken("its data would lie beyond 4 GiB")
    tail = bytearray(len(data) % 2)  # directories begin at even offsets
    entries = bytearray()
    for tag, value in sorted(tags.items()):
        if isinstance(value, tuple):
            kind = LONG if max(value) >> 16 else SHORT
            value = Raw(kind, len(value), struct.pack(f"{order}{len(value)}{INTEGERS[kind]}", *value))
        content = value.data.ljust(4, b"\0")
        if len(content) > 4:
            content = struct.pack(order + "I", len(data) + len(tail))
            tail += value.data + bytes(len(value.data) % 2)
        entries += struct.pack(order + "HHI", tag, value.kind, value.count) + content
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, len(data) + len(tail))
    return header + data[8:] + tail + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def _broken(reason: str) -> InvalidImage:
    return InvalidImage(f"image: the TIFF is broken or truncated: {reason}")
