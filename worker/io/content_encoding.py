"""Content-Encoding undone, within a limit of bytes however far the data expand. RFC 9110, section 8.4."""

import zlib
from typing import Protocol

import brotli

from sd_core.errors import InvalidImage

GZIP, ZLIB, RAW_DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS  # zlib's window bits
MAX_MEMBERS = 64  # a gzip stream may be several, one after the other


class EncodingError(Exception):
    """The data are not of the encoding that the server names, or are cut."""


def decode_body(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo `encoding`, a Content-Encoding header's value. Raises `InvalidImage`.

    Expands to at most one byte over `max_bytes`, however much `body` would hold.
    """
    names = [name for name in (part.strip().lower() for part in encoding.split(",")) if name not in ("", "identity")]
    if not names:
        return body
    decoders = {"gzip": _gunzip, "x-gzip": _gunzip, "deflate": _inflate, "br": _unbrotli}
    if len(names) > 1 or names[0] not in decoders:
        raise InvalidImage(f"image: the Content-Encoding {encoding[:40]!a} is not supported")
    try:
        data = decoders[names[0]](body, max_bytes + 1)
    except EncodingError as error:
        raise InvalidImage(f"image: the data are not the {names[0]} that their Content-Encoding says") from error
    if len(data) > max_bytes:
        raise InvalidImage(f"image: the data expand to more than the limit of {max_bytes:,} bytes")
    return data


def _gunzip(body: bytes, limit: int) -> bytes:
    data = b""
    for _ in range(MAX_MEMBERS):
        member, body = _expand(body, GZIP, limit - len(data))
        data += member
        # Some servers pad the stream: what is not another member is not read.
        if len(data) >= limit or not body.startswith(b"\x1f\x8b"):
            return data
    raise EncodingError


def _inflate(body: bytes, limit: int) -> bytes:
    """`deflate` is zlib's format by the standard, and raw deflate from some servers."""
    try:
        return _expand(body, ZLIB, limit)[0]
    except EncodingError:
        return _expand(body, RAW_DEFLATE, limit)[0]


def _expand(body: bytes, window_bits: int, limit: int) -> tuple[bytes, bytes]:
    """At most `limit` bytes of one compressed stream, and what follows it."""
    expander = zlib.decompressobj(window_bits)
    try:
        data = expander.decompress(body, limit)
    except zlib.error as error:
        raise EncodingError from error
    if len(data) < limit and not expander.eof:
        raise EncodingError
    return data, expander.unused_data


class _BrotliDecompressor(Protocol):
    def process(self, data: bytes, output_buffer_limit: int) -> bytes: ...

    def is_finished(self) -> bool: ...


def _unbrotli(body: bytes, limit: int) -> bytes:
    expander: _BrotliDecompressor = brotli.Decompressor()
    try:
        data = expander.process(body, output_buffer_limit=limit)
    except brotli.error as error:
        raise EncodingError from error
    if len(data) < limit and not expander.is_finished():
        raise EncodingError
    return data
