"""Images from URLs, against a real server on the loopback interface, which only `allow_private` lets through."""

import asyncio
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import brotli
import pytest

from sd_core.errors import Busy, InvalidImage
from worker.io.fetch import fetch, is_url

BODY = bytes(range(256)) * 8
ENCODED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY),
    "GZIP": gzip.compress(BODY),
    "gzip, identity": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "br": brotli.compress(BODY),
    "identity": BODY,
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2048\r\n\r\n" + BODY
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>; rel=preload\r\n\r\n"


class ImageHost(BaseHTTPRequestHandler):
    """`/ok` sends a body, the others send what servers also send. Tests read from `seen` what was asked for."""

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
            said = "\n".join(f"{name}: {value}" for name, value in self.headers.items()).encode()
            self.answer(200, said, {})
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
            return  # the client has had enough

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def host() -> Iterator[str]:
    ImageHost.seen.clear()
    ImageHost.answers.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), ImageHost)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


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
    """Let names resolve as `find` says; what it does not know is resolved as ever."""
    real = socket.getaddrinfo

    def resolver(name: str, port: int, *args: object, **kind: object) -> list[tuple[object, ...]]:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in find(name)]
        return found or real(name, port, *args, **kind)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)


@pytest.mark.parametrize("path", ["/ok", "/no-length", "/redirect", "/ok#fragment", "/ok?a b=é"])
def test_an_image_is_fetched(host: str, path: str) -> None:
    assert fetched(host + path) == BODY


def test_urls_are_told_from_base64() -> None:
    assert is_url("https://example.com/x.png")
    assert is_url("HTTP://example.com/x.png")
    assert not is_url("httpabcd")
    assert not is_url("ftp://example.com/x.png")


def test_the_request_says_what_it_should(host: str) -> None:
    said = dict(
        line.split(": ", 1) for line in fetched(host.replace("//", "//me:p%40ss@") + "/echo").decode().split("\n")
    )
    assert said["Host"] == host.removeprefix("http://")
    assert said["Accept-Encoding"] == "identity"
    assert said["Authorization"] == "Basic bWU6cEBzcw=="  # me:p@ss


def test_a_password_is_not_sent_on_to_where_a_redirect_leads(host: str) -> None:
    ImageHost.answers["/away"] = b"HTTP/1.1 302 Found\r\nLocation: " + host.encode() + b"/echo\r\n\r\n"
    said = fetched(host.replace("//", "//me:secret@") + "/away")
    assert b"Authorization" not in said


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


def test_the_loopback_interface_is_not_fetched_from(host: str) -> None:
    message = refusal(host + "/ok?key=s3cret", allow_private=False)
    assert "non-public address 127.0.0.1" in message
    assert "s3cret" not in message
    assert ImageHost.seen == []


@pytest.mark.parametrize("address", ["localhost", "[::1]", "169.254.169.254", "10.0.0.1", "0.0.0.0", "2130706433"])
def test_addresses_that_are_not_public_are_not_fetched_from(address: str) -> None:
    assert "non-public address" in refusal(f"http://{address}/x.png", allow_private=False)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"]])
def test_a_public_name_with_a_private_address_is_not_fetched_from(
    host: str, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    resolves(monkeypatch, lambda name: addresses if name == "images.example" else [])
    message = refusal(host.replace("127.0.0.1", "images.example") + "/ok", allow_private=False)
    assert "images.example is not fetched from" in message
    assert ImageHost.seen == []


def test_every_redirect_is_checked(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = host.rpartition(":")[2]
    ImageHost.answers["/away"] = b"HTTP/1.1 302 Found\r\nLocation: http://inside.example/secret?key=s3cret\r\n\r\n"
    resolves(monkeypatch, lambda name: {"inside.example": ["10.0.0.1"], "images.example": ["8.8.8.8"]}.get(name, []))
    real = socket.create_connection

    def connect(place: tuple[str, int], timeout: float) -> socket.socket:
        assert place == ("8.8.8.8", int(port))  # the public address stands for the loopback interface
        return real(("127.0.0.1", place[1]), timeout)

    monkeypatch.setattr(socket, "create_connection", connect)
    message = refusal(f"http://images.example:{port}/away", allow_private=False)
    assert "inside.example is not fetched from: it has the non-public address 10.0.0.1" in message
    assert "s3cret" not in message
    assert ImageHost.seen == ["/away"]


def test_the_checked_address_is_connected_to_and_not_another_one(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["127.0.0.1"], ["203.0.113.7"]])
    resolves(monkeypatch, lambda name: next(answers) if name == "rebound.example" else [])
    assert fetched(host.replace("127.0.0.1", "rebound.example") + "/ok") == BODY


def test_the_next_address_is_tried_where_one_cannot_be_connected_to(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolves(monkeypatch, lambda name: ["127.0.0.2", "127.0.0.1"] if name == "two.example" else [])
    assert fetched(host.replace("127.0.0.1", "two.example") + "/ok") == BODY


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/Ångström/é.png".encode(), "/%C3%85ngstr%C3%B6m/%C3%A9.png"),  # C3 85 holds a line separator of Latin-1
        ("/絵.png?q=猫".encode(), "/%E7%B5%B5.png?q=%E7%8C%AB"),
        (b"/caf\xe9.png", "/caf%E9.png"),
        (b"/caf%C3%A9 x.png", "/caf%C3%A9%20x.png"),
        (b"ok/../deep/a.png", "/deep/a.png"),
    ],
)
def test_redirects_are_followed_whatever_their_characters(host: str, location: bytes, asked: str) -> None:
    ImageHost.answers["/away"] = b"HTTP/1.1 301 Moved\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"
    ImageHost.answers[asked.partition("?")[0]] = OK
    assert fetched(host + "/away") == BODY
    assert ImageHost.seen == ["/away", asked]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect_is_followed(host: str, status: int) -> None:
    ImageHost.answers["/away"] = f"HTTP/1.1 {status} Away\r\nLocation: {host}/ok\r\nContent-Length: 0\r\n\r\n".encode()
    assert fetched(host + "/away") == BODY


def test_a_url_of_other_characters_is_asked_for_encoded(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ImageHost.answers["/%E7%B5%B5%20a.png"] = OK
    resolves(monkeypatch, lambda name: ["127.0.0.1"] if name == "xn--fa-hia.example" else [])  # faß, not fass
    assert fetched(host.replace("127.0.0.1", "faß.example") + "/絵 a.png") == BODY


@pytest.mark.parametrize("count", [1, 2, 10])
def test_interim_answers_are_skipped(host: str, count: int) -> None:
    continued = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    ImageHost.answers["/early"] = HINTS * count + OK
    ImageHost.answers["/mixed"] = continued + HINTS + encoded("gzip", ENCODED["gzip"])
    ImageHost.answers["/then-away"] = HINTS + b"HTTP/1.1 302 Found\r\nLocation: /early\r\n\r\n"
    for path in ("/early", "/mixed", "/then-away"):
        assert fetched(host + path) == BODY


def test_interim_answers_without_an_end_are_refused(host: str) -> None:
    ImageHost.answers["/early"] = HINTS * 11 + OK
    assert "could not be fetched from 127.0.0.1 (HTTPException)" in refusal(host + "/early")
    ImageHost.answers["/early"] = HINTS
    assert "could not be fetched from 127.0.0.1" in refusal(host + "/early")
    ImageHost.answers["/early"] = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    assert "answered 101" in refusal(host + "/early")


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
