"""Images from URLs: limits of size and time, encodings, and what bad servers send."""

import asyncio
import gzip
import socket
import threading
import zlib

import brotli
import pytest

from sd_core.errors import Busy, InvalidImage
from tests.support.image_host import BODY, ImageHost, encoded, fetched, refusal
from worker.io.fetch import fetch, is_url

ENCODED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "GZIP": gzip.compress(BODY),
    "gzip, identity": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "br": brotli.compress(BODY),
    "identity": BODY,
}


@pytest.mark.parametrize("path", ["/ok", "/no-length", "/redirect", "/ok#fragment", "/ok?a b=é"])
def test_an_image_is_fetched(host: str, path: str) -> None:
    assert fetched(host + path) == BODY


def test_urls_are_told_from_base64() -> None:
    assert is_url("https://example.com/x.png")
    assert is_url("HTTP://example.com/x.png")
    assert not is_url("httpabcd")
    assert not is_url("ftp://example.com/x.png")


def test_the_loop_goes_on_while_an_image_is_fetched(host: str) -> None:
    async def count_meanwhile() -> int:
        turns = 0
        task = asyncio.create_task(fetch(host + "/drip", total_seconds=0.5, allow_private=True))
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert isinstance(task.exception(), InvalidImage)
        return turns

    assert asyncio.run(count_meanwhile()) >= 5


@pytest.mark.parametrize("encoding", ENCODED)
def test_an_encoded_body_is_decoded(host: str, encoding: str) -> None:
    ImageHost.answers["/encoded"] = encoded(encoding, ENCODED[encoding])
    assert fetched(host + "/encoded") == BODY
    head, _, body = ImageHost.answers["/encoded"].partition(b"\r\n\r\n")
    chunks = b"".join(
        f"{len(body[at : at + 99]):x}\r\n".encode() + body[at : at + 99] + b"\r\n" for at in range(0, len(body), 99)
    )
    chunked = head.replace(f"Content-Length: {len(body)}".encode(), b"Transfer-Encoding: chunked")
    ImageHost.answers["/encoded"] = chunked + b"\r\n\r\n" + chunks + b"0\r\n\r\n"
    assert fetched(host + "/encoded") == BODY


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "127.0.0.1 answered 404"),
        ("/nowhere", "127.0.0.1 answered 302"),
        ("/loop", "more than 5 redirects"),
        ("/to-a-file", "a URL of the scheme 'file' is not fetched"),
        ("/endless-length", "over the limit of 33,554,432 bytes"),
        ("/nonsense", "could not be fetched from 127.0.0.1"),
        ("/lying-length", "could not be fetched from 127.0.0.1 (IncompleteRead)"),
    ],
)
def test_what_a_bad_server_sends_is_refused(host: str, path: str, reason: str) -> None:
    message = refusal(host + path)
    assert reason in message
    assert "s3cret" not in message


def test_size_is_limited_whether_or_not_it_is_declared(host: str) -> None:
    for path in ("/no-length", "/ok"):
        assert "127.0.0.1 sends is over the limit of 100 bytes" in refusal(host + path, max_bytes=100)
        assert len(fetched(host + path, max_bytes=2048)) == 2048
    ImageHost.answers["/encoded"] = encoded("gzip", ENCODED["gzip"])
    assert "expand to more than the limit of 2,047 bytes" in refusal(host + "/encoded", max_bytes=2047)


@pytest.mark.parametrize("path", ["/drip", "/dripping-headers"])
def test_time_is_limited_in_total(host: str, path: str) -> None:
    assert "within the time limit" in refusal(host + path, total_seconds=0.4)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "could not be fetched from 127.0.0.1 (ConnectionRefusedError)" in refusal(f"http://127.0.0.1:{port}/x")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://", "names no host"),
        ("http:///x.png", "names no host"),
        ("http://[::1/x.png", "not valid"),
        ("http://127.0.0.1:99999/x", "not valid"),
        ("http://127.0.0.1/\ud800", "not valid"),
        ("http://\ud800.example/", "not valid"),
        ("http://" + "a" * 300 + ".example/x", "could not be resolved"),
    ],
)
def test_what_is_not_a_url_is_refused(url: str, reason: str) -> None:
    message = refusal(url)
    assert reason in message
    assert len(message) < 200


def test_the_number_of_downloads_at_once_is_limited(host: str) -> None:
    slots = threading.BoundedSemaphore(1)

    async def two_at_once(patience: float) -> list[bytes | BaseException]:
        first = fetch(host + "/drip", total_seconds=0.5, allow_private=True, slots=slots)
        second = fetch(host + "/ok", total_seconds=patience, allow_private=True, slots=slots)
        return await asyncio.gather(first, second, return_exceptions=True)

    _, second = asyncio.run(two_at_once(0.1))
    assert isinstance(second, Busy) and "being fetched already" in str(second)
    _, second = asyncio.run(two_at_once(30))
    assert second == BODY


def test_time_that_is_up_before_the_download_began_is_up(host: str) -> None:
    slots = threading.BoundedSemaphore(1)
    assert "within the time limit" in refusal(host + "/ok", total_seconds=0, slots=slots)
    assert slots.acquire(timeout=10)
