"""The orientation of an image, from EXIF or XMP metadata of which any other part may be damaged.

Only one tag matters for decoding, so only that one is read: whatever else the metadata holds cannot make an image
unusable. Nothing here raises for any bytes.
"""

import re
import struct

from PIL import Image

HEADER = b"Exif\0\0"
ORIENTATION = 0x0112
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


def _from_exif(exif: bytes) -> int | None:
    while exif.startswith(HEADER):  # some writers add it twice
        exif = exif[len(HEADER) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, min(start + 2 + count * 12, len(exif) - 11), 12):
        tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
        if tag == ORIENTATION and kind in VALUE_FORMATS and values == 1:
            (value,) = struct.unpack_from(order + VALUE_FORMATS[kind], exif, entry + 8)
            return value if 1 <= value <= 8 else None
    return None


def _from_xmp(xmp: bytes) -> int | None:
    found = XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else None
