"""Images that a job carries as text: base64 or a data: URI -> bytes."""

import base64
import binascii
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from sd_core.errors import InvalidImage
from worker.io.limits import MAX_BYTES

BLOCK = 1 << 20  # percent-decoded at a time: the standard library takes some 50 bytes for each escape
WHITESPACE = "\t\n\f\r "
STANDARD = bytes.maketrans(b"-_", b"+/")


def decode_base64(source: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a base64 string or of a data: URI. Raises `InvalidImage`.

    A data: URI follows the WHATWG's rules (https://fetch.spec.whatwg.org/#data-url-processor): the payload may be
    percent-encoded, base64 may lack its padding, and without `;base64` the payload is the bytes themselves. A plain
    string follows the same rules for base64 and may also use the URL-safe alphabet (`-` and `_`), all through.
    """
    source = source.strip()
    if source[:5].lower() == "data:":
        data = _decode_data_uri(source, max_bytes)
    elif "://" in source[:64]:
        scheme = source.partition("://")[0]
        raise InvalidImage(f"image: a URL begins with http:// or https://, not {scheme!a}")
    else:
        data = _decode_text(source, max_bytes)
    if not data:
        raise InvalidImage("image: holds no bytes")
    if len(data) > max_bytes:
        raise InvalidImage(f"image: {len(data):,} bytes are over the limit of {max_bytes:,}")
    return data


def _decode_data_uri(source: str, max_bytes: int) -> bytes:
    header, comma, payload = source.partition("#")[0].partition(",")
    if not comma:
        raise InvalidImage("image: the data URI has no comma before its data (data:image/png;base64,...)")
    _check_length(payload, max_bytes * 4)  # base64 of which every character is percent-encoded
    # A URL's parser drops these three and encodes what is not ASCII as UTF-8.
    payload = payload.translate(dict.fromkeys(map(ord, "\t\n\r")))
    try:
        body = b"".join(unquote_to_bytes(block) for block in _blocks(payload))
    except UnicodeEncodeError as error:  # a lone surrogate
        raise InvalidImage("image: the data URI holds characters that are not valid Unicode") from error
    parameter = header.rstrip(WHITESPACE).lower()
    if parameter.endswith("base64") and parameter.removesuffix("base64").rstrip(" ").endswith(";"):
        return _forgiving(body, len(source))
    return body


def _decode_text(source: str, max_bytes: int) -> bytes:
    _check_length(source, max_bytes * 3 // 2)
    try:
        body = source.encode("ascii")
    except UnicodeEncodeError as error:
        raise _not_base64(len(source)) from error
    if not (b"+" in body or b"/" in body):
        body = body.translate(STANDARD)
    return _forgiving(body, len(source))


def _forgiving(body: bytes, length: int) -> bytes:
    """The "forgiving-base64 decode" of https://infra.spec.whatwg.org/, of a source of `length` characters."""
    body = body.translate(None, WHITESPACE.encode())
    if len(body) % 4 == 0:
        body = body.removesuffix(b"=").removesuffix(b"=")
    if b"=" in body:
        raise _not_base64(length)
    try:
        return base64.b64decode(body + b"=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _not_base64(length) from error


def _not_base64(length: int) -> InvalidImage:
    return InvalidImage(f"image: a string of {length:,} characters is not base64, a data URI or an http(s) URL")


def _check_length(text: str, limit: int) -> None:
    if len(text) > limit:
        raise InvalidImage(f"image: {len(text):,} characters are over the limit of {limit:,}")


def _blocks(text: str) -> Iterator[str]:
    """`text` in pieces that divide no %XX escape."""
    start = 0
    while start < len(text):
        end = start + BLOCK
        escape = text.find("%", end - 2, end)
        end = escape if escape > start else end
        yield text[start:end]
        start = end
