"""A server on the loopback interface that answers requests for images as good and bad servers do."""

import asyncio
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

import pytest

from sd_core.errors import InvalidImage
from worker.io.fetch import fetch

BODY = bytes(range(256)) * 8
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2048\r\n\r\n" + BODY
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>; rel=preload\r\n\r\n"


class ImageHost(BaseHTTPRequestHandler):
    """`/ok` sends a body, other paths send other answers. `seen` records the requested paths."""

    seen: list[str] = []  # noqa: RUF012 - one list for all connections, emptied by the fixture
    answers: dict[str, bytes] = {}  # noqa: RUF012 - whole responses by path, filled by the tests

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        type(self).seen.append(self.path)
        fixed = {
            "/ok": (200, BODY, {"Content-Length": "2048"}),
            "/no-length": (200, BODY, {}),
            "/lying-length": (200, BODY, {"Content-Length": "10000000"}),
            "/endless-length": (200, BODY, {"Content-Length": "9" * 30}),
            "/missing": (404, b"no such image", {"Content-Length": "13"}),
            "/redirect": (302, b"", {"Location": "/ok", "Content-Length": "0"}),
            "/loop": (302, b"", {"Location": "/loop?key=s3cret", "Content-Length": "0"}),
            "/to-a-file": (302, b"", {"Location": "file:///etc/passwd", "Content-Length": "0"}),
            "/nowhere": (302, b"", {"Content-Length": "0"}),
        }
        if path in self.answers:
            self.wfile.write(self.answers[path])
        elif path in fixed:
            self.answer(*fixed[path])
        elif path == "/echo":
            headers = "\n".join(f"{name}: {value}" for name, value in self.headers.items()).encode()
            self.answer(200, headers, {})
        elif path == "/drip":
            self.drip(b"HTTP/1.0 200 OK\r\n\r\n", b"x")
        elif path == "/dripping-headers":
            self.drip(b"HTTP/1.0 200 OK\r\nX: ", b"x")
        elif path == "/nonsense":
            self.wfile.write(b"\0\0nonsense\r\n\r\n")
        else:
            self.answer(404, b"", {})

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
            return  # the client has disconnected

    def log_message(self, *_args: object) -> None:
        """Log nothing."""


def fetched(url: str, **options: object) -> bytes:
    return asyncio.run(fetch(url, **{"allow_private": True, **options}))


def refusal(url: str, **options: object) -> str:
    with pytest.raises(InvalidImage) as caught:
        fetched(url, **options)
    assert str(caught.value).startswith("image: ")
    return str(caught.value)


def encoded(encoding: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def resolves(monkeypatch: pytest.MonkeyPatch, find: Callable[[str], list[str]]) -> None:
    """Let names resolve to what `find` returns; names that it does not know are resolved as usual."""
    real = socket.getaddrinfo

    def resolver(name: str, port: int, *args: object, **kind: object) -> list[tuple[object, ...]]:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in find(name)]
        return found or real(name, port, *args, **kind)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
