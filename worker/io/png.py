"""PNG and APNG: the first frame, decoded from a file reduced to the chunks that decoding needs.

All other chunks (text, colour profiles, dates, unknown ones) are dropped before Pillow reads the file: damage in them
does not matter, and compressed ones are not expanded. The image chunks must be complete and their checksums right.
Specification: https://www.w3.org/TR/png-3/.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from sd_core.errors import InvalidImage
from worker.io.exif import orientation_of, unpack_raw_profile
from worker.io.frames import Frame, flattened, open_image
from worker.io.limits import check_pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_METADATA = 1 << 20  # bytes that a compressed text may expand to; only the orientation is looked for in it
MAX_CHUNKS = 100_000
GRAY, RGB = 0, 2  # colour types
SAMPLES = {GRAY: 1, RGB: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
INFLATED_BLOCK = 1 << 20
# Of the seven passes of an interlaced image: the first column and row, the steps across and down.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
EXIF_TEXTS = frozenset({b"Raw profile type exif", b"Raw profile type APP1"})
XMP_TEXT = b"XML:com.adobe.xmp"


@dataclass(frozen=True)
class Chunk:
    kind: bytes
    body: bytes
    sound: bool = True  # complete, and its checksum is right


@dataclass(frozen=True)
class Header:
    """IHDR's fields."""

    width: int
    height: int
    depth: int  # bits of a sample
    colour: int  # colour type
    compression: int
    filtering: int
    interlacing: int


def first_frame(data: bytes, ground: int) -> Frame:
    """A PNG file -> its image, or its animation's first frame on the whole canvas. Raises `InvalidImage`."""
    chunks = list(read_chunks(data))
    canvas = _header(chunks)
    check_pixels(canvas.width, canvas.height)
    frames = _frame_count(chunks)
    header, position, stream = _first_image(chunks, canvas, animation=frames > 0)
    image = _decode(header, chunks, stream, ground)
    if image.size != (canvas.width, canvas.height):
        # An animation's canvas starts transparent.
        whole = Image.new("RGB", (canvas.width, canvas.height), (ground, ground, ground))
        whole.paste(image, position)
        image = whole
    return Frame(image, _orientation(chunks), animated=frames > 1)


def read_chunks(data: bytes) -> Iterator[Chunk]:
    """The chunks of a PNG file up to IEND or to where the file ends. Raises `InvalidImage` if there are too many."""
    offset = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if offset + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, offset)
        body = data[offset + 8 : offset + 8 + length]
        checksum = data[offset + 8 + length : offset + 12 + length]
        yield Chunk(kind, body, checksum == struct.pack(">I", zlib.crc32(body, zlib.crc32(kind))))
        if kind == b"IEND":
            return
        offset += 12 + length
    raise InvalidImage(f"image: the PNG has more than {MAX_CHUNKS:,} chunks")


def texts_of(data: bytes) -> dict[str, str]:
    """The undamaged texts of a PNG file by keyword, the first of each; of a compressed one `MAX_METADATA` bytes."""
    texts: dict[str, str] = {}
    for chunk in read_chunks(data):
        if chunk.sound and chunk.kind in TEXTS:
            keyword = chunk.body[:80].partition(b"\0")[0].decode("latin-1")
            encoding = "utf-8" if chunk.kind == b"iTXt" else "latin-1"
            texts.setdefault(keyword, _text(chunk).decode(encoding, "replace"))
    return texts


def exif_of(data: bytes) -> bytes:
    """The first EXIF block of a PNG file; empty if there is none."""
    return next((chunk.body for chunk in read_chunks(data) if chunk.sound and chunk.kind == b"eXIf"), b"")


def pack_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk as a file holds it."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _header(chunks: Sequence[Chunk]) -> Header:
    if not chunks or chunks[0].kind != b"IHDR" or len(chunks[0].body) != 13:
        raise InvalidImage("image: the PNG is broken: its header is missing")
    return Header(*struct.unpack(">2I5B", _sound(chunks[0]).body))


def _sound(chunk: Chunk) -> Chunk:
    if not chunk.sound:
        raise InvalidImage(f"image: the PNG is broken or truncated: its {chunk.kind.decode('ascii')} chunk is damaged")
    return chunk


def _frame_count(chunks: Iterable[Chunk]) -> int:
    """How many frames the animation has; 0 for a still image, whose acTL is missing, late or damaged."""
    for chunk in chunks:
        if chunk.kind == b"acTL" and chunk.sound and len(chunk.body) == 8:
            return int.from_bytes(chunk.body[:4], "big")
        if chunk.kind == b"IDAT":
            break
    return 0


def _first_image(
    chunks: Sequence[Chunk], canvas: Header, *, animation: bool
) -> tuple[Header, tuple[int, int], list[bytes]]:
    """The first frame's header, its position on the canvas and its compressed pixels, in parts.

    An fcTL before the first IDAT makes the default image the animation's first frame. Without one the default image
    is hidden, and the first frame is the fcTL after it with the fdAT up to the next fcTL.
    """
    default = [index for index, chunk in enumerate(chunks) if chunk.kind == b"IDAT"]
    controls = [index for index, chunk in enumerate(chunks) if chunk.kind == b"fcTL"]
    if not (animation and controls) or (default and controls[0] < default[0]):
        return canvas, (0, 0), [_sound(chunks[index]).body for index in default]
    control = _sound(chunks[controls[0]]).body
    if len(control) != 26:
        raise InvalidImage("image: the PNG is broken: its first frame has no valid fcTL chunk")
    width, height, x, y = struct.unpack_from(">4I", control, 4)
    if not (0 < width <= canvas.width - x and 0 < height <= canvas.height - y):
        raise InvalidImage("image: the PNG is broken: its first frame does not fit its canvas")
    frame = chunks[controls[0] : controls[1] if len(controls) > 1 else None]
    stream = [_sound(chunk).body[4:] for chunk in frame if chunk.kind == b"fdAT"]  # after a sequence number
    return replace(canvas, width=width, height=height), (x, y), stream


def _decode(header: Header, chunks: Iterable[Chunk], stream: list[bytes], ground: int) -> Image.Image:
    """An image's header and compressed pixels -> RGB, with the transparency of the file's tRNS laid on `ground`."""
    palette = next((_sound(chunk).body for chunk in chunks if chunk.kind == b"PLTE"), None)
    clear = next((_sound(chunk).body for chunk in chunks if chunk.kind == b"tRNS"), None)
    parts = [SIGNATURE, pack_chunk(b"IHDR", struct.pack(">2I5B", *vars(header).values()))]
    if palette is not None:
        parts.append(pack_chunk(b"PLTE", palette))
    if clear is not None and (header.colour, header.depth) != (RGB, 16):
        parts.append(pack_chunk(b"tRNS", _clear_as_decoded(header, clear)))
    pixels = b"".join(stream)
    if not _has_all_rows(header, pixels):
        raise InvalidImage("image: the PNG is broken or truncated: rows of pixels are missing")
    parts += [pack_chunk(b"IDAT", pixels), pack_chunk(b"IEND", b"")]
    data = b"".join(parts)
    image = open_image(data, "PNG")
    image.load()
    if clear is not None and (header.colour, header.depth) == (RGB, 16):
        return _clear_colour_of_16_bits(image, data, clear, ground)
    return flattened(image, ground)


def _has_all_rows(header: Header, stream: bytes) -> bool:
    """Whether the compressed rows are as many bytes as the header says. Pillow leaves missing ones black."""
    missing = _row_bytes(header)
    expander = zlib.decompressobj()
    while missing > 0 and not expander.eof:
        try:
            expanded = len(expander.decompress(stream, INFLATED_BLOCK))
        except zlib.error:
            return False
        stream = expander.unconsumed_tail
        if not expanded and not stream:
            return False
        missing -= expanded
    return missing <= 0


def _row_bytes(header: Header) -> int:
    """How many bytes all rows take uncompressed, each with its filter's byte."""
    bits = SAMPLES.get(header.colour, 1) * header.depth
    passes = ADAM7 if header.interlacing else ((0, 0, 1, 1),)
    total = 0
    for x, y, across, down in passes:
        width, height = -((x - header.width) // across), -((y - header.height) // down)
        if width > 0 and height > 0:
            total += height * (1 + (width * bits + 7) // 8)
    return total


def _clear_as_decoded(header: Header, clear: bytes) -> bytes:
    """tRNS in the 8-bit levels that Pillow decodes to: it does not scale the value of 1, 2 or 4 bits itself."""
    if header.colour not in (GRAY, RGB) or header.depth == 16:
        return clear
    top = (1 << header.depth) - 1
    levels = struct.unpack(f">{SAMPLES[header.colour]}H", clear)
    return struct.pack(f">{len(levels)}H", *((level & top) * 255 // top for level in levels))


def _clear_colour_of_16_bits(image: Image.Image, data: bytes, clear: bytes, ground: int) -> Image.Image:
    """Lay the one transparent colour on `ground`. Pillow keeps the high bytes of 16-bit RGB, so that many colours look
    like this one; the low bytes come from a second decoding, which reads each sample in the other byte order."""
    low = open_image(data, "PNG")
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    colour = np.array(struct.unpack(">3H", clear))
    pixels, is_clear = np.array(image), np.ones(image.size[::-1], bool)
    for levels, wanted in ((pixels, colour >> 8), (np.asarray(low), colour & 255)):
        for sample in range(3):
            is_clear &= levels[..., sample] == wanted[sample]
    pixels[is_clear] = ground
    return Image.fromarray(pixels)


def _orientation(chunks: Iterable[Chunk]) -> int:
    exif = xmp = None
    for chunk in chunks:
        if not chunk.sound:
            continue
        if chunk.kind == b"eXIf":
            exif = exif or chunk.body
        elif chunk.kind in TEXTS:
            keyword = chunk.body[:80].partition(b"\0")[0]
            if keyword in EXIF_TEXTS:
                exif = exif or unpack_raw_profile(_text(chunk))
            elif keyword == XMP_TEXT:
                xmp = xmp or _text(chunk)
    return orientation_of(exif, xmp)


def _text(chunk: Chunk) -> bytes:
    """A text chunk's text, of a compressed one at most its first `MAX_METADATA` bytes; empty if it is damaged."""
    _, _, rest = chunk.body.partition(b"\0")
    compressed = chunk.kind == b"zTXt"
    if compressed:
        rest = rest[1:]  # the method
    elif chunk.kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        _, _, rest = rest[2:].partition(b"\0")  # the flag and the method, then the language
        _, _, rest = rest.partition(b"\0")  # the translated keyword
    if not compressed:
        return rest
    try:
        return zlib.decompressobj().decompress(rest, MAX_METADATA)
    except zlib.error:
        return b""
