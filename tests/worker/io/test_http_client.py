"""Which addresses are connected to, how redirects are followed, and what is sent: on the loopback interface, which only
`allow_private` lets through."""

import gzip
import socket

import pytest

from tests.support.image_host import BODY, HINTS, OK, ImageHost, encoded, fetched, refusal, resolves


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
    ImageHost.answers["/mixed"] = continued + HINTS + encoded("gzip", gzip.compress(BODY))
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
