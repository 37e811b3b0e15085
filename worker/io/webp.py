"""WebP: decoded from a file reduced to the chunks that decoding needs.

Metadata and unknown chunks are dropped before Pillow reads the file, and its sizes are written anew: libwebp refuses
the whole file if one of them is cut. Specification: RFC 9649, section 2.
"""

import struct
from collections.abc import Iterator

from PIL import UnidentifiedImageError

from sd_core.errors import InvalidImage
from worker.io.exif import orientation_of
from worker.io.frames import Frame, flattened, is_animated, open_image

SIGNATURE = b"RIFF"
KIND = b"WEBP"  # after the signature and a size
FEATURES = b"VP8X"
DECODED = frozenset({FEATURES, b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"})
METADATA_FLAGS = 0x20 | 0x08 | 0x04  # in VP8X: there is a colour profile, EXIF, XMP
MAX_CHUNKS = 100_000


def first_frame(data: bytes, ground: int) -> Frame:
    """A WebP file -> its image or its animation's first frame. Raises `InvalidImage`, or what Pillow raises."""
    if data[8:12] != KIND:
        raise UnidentifiedImageError  # RIFF is the container of sounds and films, too
    kept: list[bytes] = []
    exif = xmp = None
    for kind, body, length in _chunks(data):
        if kind == FEATURES and body:
            body = bytes([body[0] & ~METADATA_FLAGS]) + body[1:]
        if kind in DECODED:
            kept.append(kind + struct.pack("<I", length) + body + bytes(len(body) % 2))
        elif kind == b"EXIF":
            exif = exif or body
        elif kind == b"XMP ":
            xmp = xmp or body
    content = KIND + b"".join(kept)
    image = open_image(SIGNATURE + struct.pack("<I", len(content)) + content, "WEBP")
    image.load()
    return Frame(flattened(image, ground), orientation_of(exif, xmp), is_animated(image))


def exif_of(data: bytes) -> bytes:
    """The first EXIF block of a WebP file; empty if there is none. Raises `InvalidImage` for too many chunks."""
    return next((body for kind, body, _ in _chunks(data) if kind == b"EXIF"), b"")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Each chunk's kind, its body, and the body's length as stated: of the last one the file may hold less."""
    offset = len(SIGNATURE) + 4 + len(KIND)
    for _ in range(MAX_CHUNKS):
        if offset + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, offset)
        yield kind, data[offset + 8 : offset + 8 + length], length
        offset += 8 + length + length % 2
    raise InvalidImage(f"image: the WebP has more than {MAX_CHUNKS:,} chunks")
