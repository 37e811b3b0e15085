"""Image files written byte by byte, because no library writes them: odd samples, damaged metadata, animations."""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, YELLOW = (220, 40, 30), (30, 200, 60), (40, 60, 210), (230, 220, 40)
GRAYS = (220, 30, 40, 230)
SIZE = WIDTH, HEIGHT = 96, 64


def quarters(values: Sequence[Any], dtype: Any = np.uint8) -> np.ndarray:  # (64, 96) or (64, 96, channels)
    """An image whose four quarters have these values: top left, top right, bottom left, bottom right."""
    top_left, top_right, bottom_left, bottom_right = np.asarray(values, dtype)
    pixels = np.empty((HEIGHT, WIDTH, *top_left.shape), dtype)
    pixels[: HEIGHT // 2, : WIDTH // 2], pixels[: HEIGHT // 2, WIDTH // 2 :] = top_left, top_right
    pixels[HEIGHT // 2 :, : WIDTH // 2], pixels[HEIGHT // 2 :, WIDTH // 2 :] = bottom_left, bottom_right
    return pixels


def coloured_quarters() -> Image.Image:
    return Image.fromarray(quarters((RED, GREEN, BLUE, YELLOW)))


def centres(pixels: np.ndarray) -> list[Any]:
    """The pixel in the middle of each quarter: one level if all channels are equal, else a tuple."""
    height, width = pixels.shape[:2]
    found = [pixels[y, x].tolist() for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [pixel[0] if len(set(pixel)) == 1 else tuple(pixel) for pixel in found]


# PNG


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    found = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", found)


def png_of(
    width: int, height: int, depth: int = 8, colour: int = 0, rows: bytes = b"", before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of these filtered rows, with chunks `before` and `after` its IDAT."""
    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def png_rows(pixels: np.ndarray, depth: int) -> bytes:
    """Unfiltered rows of samples of 1 to 16 bits: (H, W) or (H, W, channels)."""
    flat = pixels.reshape(len(pixels), -1)
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in flat)
    bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return b"".join(b"\0" + np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits)


def png_of_pixels(pixels: np.ndarray, depth: int = 8, before: bytes = b"", after: bytes = b"") -> bytes:
    colour = {2: 0, 3: 2}[pixels.ndim]
    return png_of(pixels.shape[1], pixels.shape[0], depth, colour, png_rows(pixels, depth), before, after)


def frame_control(sequence: int, width: int, height: int, x: int = 0, y: int = 0) -> bytes:
    return chunk(b"fcTL", struct.pack(">5I2H2B", sequence, width, height, x, y, 1, 10, 0, 0))


def frame_data(sequence: int, pixels: np.ndarray) -> bytes:
    return chunk(b"fdAT", struct.pack(">I", sequence) + zlib.compress(png_rows(pixels, 8)))


# EXIF


def exif_of(orientation: int, order: str = "<", kind: int = 3, entries: Sequence[bytes] = ()) -> bytes:
    """A TIFF-structured EXIF block with these further 12-byte entries before the orientation."""
    value = struct.pack(order + {1: "B", 3: "H", 4: "I"}.get(kind, "I"), orientation).ljust(4, b"\0")
    body = b"".join(entries) + struct.pack(order + "HHI", 0x0112, kind, 1) + value
    count = struct.pack(order + "H", len(entries) + 1)
    return exif_header(order) + count + body + bytes(4)


def exif_header(order: str = "<") -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    return jpeg[:2] + segments + jpeg[2:]


# TIFF


def tiff_of(
    pixels: np.ndarray,
    *,
    order: str = "<",
    bits: int | None = None,
    sample_format: int = 1,
    photometric: int = 1,
    deflate: bool = False,
    rows_per_strip: int = 10,
    tags: dict[int, tuple[int, tuple[int, ...] | bytes]] | None = None,
    big: bool = False,
) -> bytes:
    """A TIFF of strips, (H, W) or (H, W, channels) of any dtype; `bits` packs integers into fewer.

    `tags` adds entries or replaces them: tag -> (type, values), or (type, bytes) as they stand in the file.
    """
    bits = bits or pixels.dtype.itemsize * 8
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    strips = [_packed(pixels[top : top + rows_per_strip], bits, order) for top in range(0, len(pixels), rows_per_strip)]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    head = 16 if big else 8
    offsets = tuple(head + sum(map(len, strips[:index])) for index in range(len(strips)))
    entries: dict[int, tuple[int, tuple[int, ...] | bytes]] = {
        256: (4, (pixels.shape[1],)), 257: (4, (len(pixels),)), 258: (3, (bits,) * samples),
        259: (3, (8 if deflate else 1,)), 262: (3, (photometric,)), 273: (16 if big else 4, offsets),
        277: (3, (samples,)), 278: (3, (rows_per_strip,)), 279: (4, tuple(map(len, strips))),
        339: (3, (sample_format,) * samples), **(tags or {}),
    }  # fmt: skip
    body = b"".join(strips)
    word, room, count = ("Q", 8, "Q") if big else ("I", 4, "H")
    directory, tail = b"", b""
    tail_at = head + len(body)
    for tag, (kind, values) in sorted(entries.items()):
        content = values if isinstance(values, bytes) else _values(kind, values, order)
        number = len(values) if isinstance(values, tuple) or kind == 7 else len(values) // 8
        if len(content) > room:
            place = struct.pack(order + word, tail_at + len(tail))
            tail += content
            content = place
        directory += struct.pack(order + "HH" + word, tag, kind, number) + content.ljust(room, b"\0")
    mark = b"II" if order == "<" else b"MM"
    start = tail_at + len(tail)
    header = struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start)
    return mark + header + body + tail + struct.pack(order + count, len(entries)) + directory + bytes(room)


def _values(kind: int, values: tuple[int, ...], order: str) -> bytes:
    return struct.pack(f"{order}{len(values)}{ {1: 'B', 3: 'H', 4: 'I', 16: 'Q'}[kind] }", *values)


def _packed(pixels: np.ndarray, bits: int, order: str) -> bytes:
    if bits == pixels.dtype.itemsize * 8:
        return pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    rows = pixels.reshape(len(pixels), -1)
    parts = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return b"".join(np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in parts)
