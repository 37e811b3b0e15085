"""What is used of EXIF or XMP metadata: orientation, and texts about how an image was generated.

Only these tags are read: whatever else the metadata holds, and however damaged it is, cannot make an image unusable.
Nothing here that reads raises for any bytes.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

HEADER = b"Exif\0\0"
ORIENTATION = 0x0112
EXIF_DIRECTORY = 0x8769
USER_COMMENT = 0x9286
ASCII = 2
LONG = 4
UNDEFINED = 7
UNICODE = b"UNICODE\0"  # the comment's encoding, UTF-16
VALUE_FORMATS = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT (the standard's own) and LONG; others hold no small integer
XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|>)\s*([1-8])""")
RAW_PROFILE = re.compile(rb"\s*(?:exif|app1|generic profile)\s+\d+\s+([0-9a-fA-F\s]*)", re.IGNORECASE)

TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what turns an image of each orientation upright


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """1..8, from a TIFF-structured EXIF block (with or without its `Exif` header), else from an XMP packet, else 1."""
    return _from_exif(exif or b"") or _from_xmp(xmp or b"") or 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn or flip an image of EXIF orientation 1..8 so that its first row is the top."""
    return image.transpose(TRANSPOSE[orientation]) if orientation in TRANSPOSE else image


def unpack_raw_profile(text: bytes) -> bytes:
    """The bytes of a hexadecimal `Raw profile type ...` text, as ImageMagick writes it; what precedes any damage."""
    found = RAW_PROFILE.match(text)
    digits = b"".join(found[1].split()) if found else b""
    return bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))


def with_user_comment(text: str) -> bytes:
    """An EXIF block, with its `Exif` header, that holds only this comment: UTF-16, big-endian, as A1111 writes it."""
    comment = UNICODE + text.encode("utf-16-be", "replace")
    size = 2 + 12 + 4  # of a directory with one entry
    first, second = 8, 8 + size
    header = b"MM\0*" + struct.pack(">I", first)
    to_exif = struct.pack(">HHHIII", 1, EXIF_DIRECTORY, LONG, 1, second, 0)
    to_comment = struct.pack(">HHHIII", 1, USER_COMMENT, UNDEFINED, len(comment), second + size, 0)
    return HEADER + header + to_exif + to_comment + comment


def user_comment_of(exif: bytes) -> str | None:
    """The UserComment of a TIFF-structured EXIF block (with or without its `Exif` header)."""
    block = _block(exif)
    for entry in _entries(block, 4):
        if entry.tag == EXIF_DIRECTORY:
            for inner in _entries(block, entry.value_at):
                if inner.tag == USER_COMMENT:
                    return _decoded(_value(block, inner))
    return None


def ascii_texts_of(exif: bytes) -> list[str]:
    """The plain texts of an EXIF block's first directory, such as its Make and Model."""
    block = _block(exif)
    texts = (_value(block, entry) for entry in _entries(block, 4) if entry.kind == ASCII)
    return [text.rstrip(b"\0").decode("utf-8", "replace") for text in texts]


@dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    count: int  # of values
    value_at: int  # where the value, or the offset of a longer one, is


def _block(exif: bytes) -> bytes:
    while exif.startswith(HEADER):  # some writers add it twice
        exif = exif[len(HEADER) :]
    return exif


def _order(block: bytes) -> str:
    return {b"II": "<", b"MM": ">"}.get(block[:2], "")


def _entries(block: bytes, pointer: int) -> Iterator[_Entry]:
    """The entries of the directory whose offset is at `pointer`; none if it is not inside the block."""
    order = _order(block)
    if not order or len(block) < pointer + 4:
        return
    (start,) = struct.unpack_from(order + "I", block, pointer)
    if start + 2 > len(block):
        return
    (count,) = struct.unpack_from(order + "H", block, start)
    for entry in range(start + 2, min(start + 2 + count * 12, len(block) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHI", block, entry)
        yield _Entry(tag, kind, values, entry + 8)


def _value(block: bytes, entry: _Entry) -> bytes:
    """The value of an entry of single bytes; what there is of it if the block is cut."""
    start = entry.value_at
    if entry.count > 4:
        (start,) = struct.unpack_from(_order(block) + "I", block, start)
    return block[start : start + entry.count]


def _decoded(comment: bytes) -> str:
    """A UserComment's text. Its first 8 bytes say how it is encoded.

    The standard gives UTF-16 the block's byte order, A1111 writes big-endian in any block. So the text decides: of
    characters that are ASCII, which some of them are, the high byte is 0.
    """
    code, text = comment[:8], comment[8:]
    if code == UNICODE:
        big = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if big else "utf-16-le", "replace").rstrip("\0")
    return text.decode("utf-8", "replace").strip("\0")


def _from_exif(exif: bytes) -> int | None:
    block = _block(exif)
    for entry in _entries(block, 4):
        if entry.tag == ORIENTATION and entry.kind in VALUE_FORMATS and entry.count == 1:
            (value,) = struct.unpack_from(_order(block) + VALUE_FORMATS[entry.kind], block, entry.value_at)
            return value if 1 <= value <= 8 else None
    return None


def _from_xmp(xmp: bytes) -> int | None:
    found = XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else None
