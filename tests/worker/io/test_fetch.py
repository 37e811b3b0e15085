"""Pictures from URLs, against a real server on the loopback interface.

The SDK's guard refuses loopback addresses; where a test needs an answer it opens the guard by the SDK's own switch,
RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sd_core.errors import Busy, InvalidImage
from worker.io import fetch as fetch_module
from worker.io.fetch import fetch

BODY = bytes(range(256)) * 8


class PictureHost(BaseHTTPRequestHandler):
    """`/ok` sends a body, the others send what no honest server does."""

    seen: list[str] = []  # noqa: RUF012 - one list for all connections, emptied by the fixture

    def do_GET(self) -> None:
        type(self).seen.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/ok":
            self.answer(200, BODY, {"Content-Length": str(len(BODY))})
        elif path == "/no-length":
            self.answer(200, BODY, {})
        elif path == "/lying-length":
            self.answer(200, BODY, {"Content-Length": "10000000"})
        elif path == "/endless-length":
            self.answer(200, BODY, {"Content-Length": "9" * 30})
        elif path == "/missing":
            self.answer(404, b"no such picture", {"Content-Length": "15"})
        elif path == "/redirect":
            self.answer(302, b"", {"Location": "/ok", "Content-Length": "0"})
        elif path == "/loop":
            self.answer(302, b"", {"Location": "/loop?key=s3cret", "Content-Length": "0"})
        elif path == "/to-a-file":
            self.answer(302, b"", {"Location": "file:///etc/passwd", "Content-Length": "0"})
        elif path == "/drip":
            self.drip(b"HTTP/1.0 200 OK\r\n\r\n", b"x")
        elif path == "/dripping-headers":
            self.drip(b"HTTP/1.0 200 OK\r\nX: ", b"x")
        elif path == "/nonsense":
            self.wfile.write(b"\0\0nonsense\r\n\r\n")

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, head: bytes, drop: bytes) -> None:
        self.wfile.write(head)
        try:
            for _ in range(100):
                self.wfile.write(drop)
                time.sleep(0.05)
        except OSError:
            return  # the client has had enough

    def log_message(self, *_args: object) -> None:
        """Says nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    PictureHost.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), PictureHost)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def open_host(host: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    return host


def refusal(url: str, **options: float) -> str:
    with pytest.raises(InvalidImage) as caught:
        asyncio.run(fetch(url, **options))  # type: ignore[arg-type]
    assert str(caught.value).startswith("image: ")
    return str(caught.value)


@pytest.mark.parametrize("path", ["/ok", "/no-length", "/redirect"])
def test_a_picture_is_fetched(open_host: str, path: str) -> None:
    assert asyncio.run(fetch(open_host + path)) == BODY


def test_the_loop_goes_on_while_a_picture_is_fetched(open_host: str) -> None:
    async def count_meanwhile() -> int:
        turns = 0
        task = asyncio.create_task(fetch(open_host + "/drip", total_seconds=0.5))
        while not task.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert isinstance(task.exception(), InvalidImage)
        return turns

    assert asyncio.run(count_meanwhile()) >= 5


def test_the_loopback_interface_is_not_fetched_from(host: str) -> None:
    message = refusal(host + "/ok?key=s3cret")
    assert "non-public address 127.0.0.1" in message
    assert "s3cret" not in message
    assert PictureHost.seen == []


@pytest.mark.parametrize(
    "address",
    ["localhost", "[::1]", "169.254.169.254", "10.0.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "2130706433"],
)
def test_addresses_that_are_not_public_are_not_fetched_from(address: str) -> None:
    assert "non-public address" in refusal(f"http://{address}/x.png")


def test_a_public_name_with_a_private_address_is_not_fetched_from(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolver(name: str, port: int, **_kind: object) -> list[tuple[object, ...]]:
        assert name == "pictures.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    message = refusal(host.replace("127.0.0.1", "pictures.example") + "/ok")
    assert "pictures.example is not fetched from" in message
    assert PictureHost.seen == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "127.0.0.1 answered 404"),
        ("/loop", "exceeded maximum redirects"),
        ("/to-a-file", "blocked URL scheme 'file'"),
        ("/endless-length", "exceeds size cap"),
        ("/nonsense", "could not be read from"),
        ("/lying-length", "could not be read from (ProtocolError)"),
    ],
)
def test_what_a_bad_server_sends_is_refused(open_host: str, path: str, reason: str) -> None:
    message = refusal(open_host + path)
    assert reason in message
    assert "s3cret" not in message


def test_size_is_limited_whether_or_not_it_is_declared(open_host: str) -> None:
    assert "over the limit of 100 bytes" in refusal(open_host + "/no-length", max_bytes=100)
    assert "exceeds size cap: 2048 > 100 bytes" in refusal(open_host + "/ok", max_bytes=100)


@pytest.mark.parametrize("path", ["/drip", "/dripping-headers"])
def test_time_is_limited_in_total(open_host: str, path: str) -> None:
    assert "within the time limit" in refusal(open_host + path, total_seconds=0.4)


def test_a_server_that_is_not_there_is_named(open_host: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "127.0.0.1 could not be read from (ConnectionError)" in refusal(f"http://127.0.0.1:{port}/x")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://", "names no host"),
        ("http:///x.png", "names no host"),
        ("http://[::1/x.png", "not a valid one"),
        ("http://127.0.0.1:99999/x", "could not be read from"),
        ("http://" + "a" * 300 + ".example/x", "could not be read from"),
    ],
)
def test_what_is_no_url_is_refused(url: str, reason: str) -> None:
    message = refusal(url)
    assert reason in message
    assert len(message) < 200


def test_the_number_of_downloads_at_once_is_limited(open_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "_downloads", threading.BoundedSemaphore(1))

    async def two_at_once(patience: float) -> list[bytes | BaseException]:
        first = fetch(open_host + "/drip", total_seconds=0.5)
        return await asyncio.gather(first, fetch(open_host + "/ok", total_seconds=patience), return_exceptions=True)

    _, second = asyncio.run(two_at_once(0.1))
    assert isinstance(second, Busy) and "being fetched already" in str(second)
    _, second = asyncio.run(two_at_once(30))
    assert isinstance(second, bytes)


def test_time_that_is_up_before_the_download_began_is_up(host: str) -> None:
    assert "within the time limit" in refusal(host + "/ok", total_seconds=0)
    assert fetch_module._downloads.acquire(timeout=10)
    fetch_module._downloads.release()
