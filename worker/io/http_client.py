"""One HTTP GET at a time, to checked addresses only: every connection is pinned to an address that `resolve` passed.

Of our own, on the standard library, because the connection has to go to the address that was checked (a second lookup
could answer another one), every redirect has to be checked again, and interim answers (1xx) have to be skipped: no
client among the dependencies does all three. Proxies of the environment are not used: they would look up the name
themselves. Specifications: RFC 9110, RFC 9112.
"""

import functools
import http.client
import socket
import ssl
from base64 import b64encode
from dataclasses import dataclass
from urllib.parse import quote, unquote, urljoin, urlsplit

import certifi

from sd_core.errors import InvalidImage
from worker.io.addresses import ascii_host, printable, resolve

MAX_REDIRECTS = 5
MAX_INTERIM = 10  # answers with a status of 1xx before the final one
REDIRECTS = frozenset({301, 302, 303, 307, 308})
SWITCHING_PROTOCOLS = 101
PORTS = {"http": 80, "https": 443}
URL_CHARACTERS = "%/?:@!$&'()*+,;=~-._[]|"  # left as they are in a path and a query; others are percent-encoded


class FinalResponse(http.client.HTTPResponse):
    """A response that has skipped the interim ones before it, such as 103 Early Hints."""

    def begin(self) -> None:
        for _ in range(MAX_INTERIM + 1):
            super().begin()
            if not 100 <= self.status < 200 or self.status == SWITCHING_PROTOCOLS:
                return
            self.headers = self.msg = None  # type: ignore[assignment] # `begin` does nothing once they are set
        raise http.client.HTTPException(f"more than {MAX_INTERIM} interim responses")


class PinnedConnection(http.client.HTTPConnection):
    """A connection for the host of a URL, made to one given address. TLS checks the certificate for the host."""

    response_class = FinalResponse

    def __init__(self, url: "Target", address: str, timeout: float) -> None:
        self.default_port = PORTS[url.scheme]  # so that the Host header names only another port
        super().__init__(url.host, url.port, timeout=timeout)
        self._url, self._address = url, address

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self._url.port), self.timeout)
        if self._url.scheme == "https":
            self.sock = tls_context().wrap_socket(self.sock, server_hostname=self._url.host)


@dataclass(frozen=True)
class Target:
    """A URL taken apart: all of it ASCII, as it goes over the wire."""

    url: str
    scheme: str
    host: str
    port: int
    path: str  # with the query
    authorization: str | None

    @classmethod
    def of(cls, url: str) -> "Target":
        """Raises `InvalidImage` for what is not an http(s) URL."""
        try:
            parts = urlsplit(url)
            host, port = ascii_host(parts.hostname or ""), parts.port
            path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=URL_CHARACTERS)
            user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
            authorization = None if parts.username is None else f"Basic {b64encode(user).decode('ascii')}"
        except ValueError as error:
            raise InvalidImage("image: the URL is not valid") from error
        if parts.scheme not in PORTS:
            raise InvalidImage(f"image: a URL of the scheme {printable(parts.scheme)!r} is not fetched")
        if not host:
            raise InvalidImage("image: the URL names no host")
        return cls(url, parts.scheme, host, PORTS[parts.scheme] if port is None else port, path, authorization)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Verifies servers by the system's authorities and by certifi's, as images of containers often have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def get(
    url: str, headers: dict[str, str], timeout: float, *, allow_private: bool = False
) -> tuple[http.client.HTTPResponse, PinnedConnection]:
    """The final answer to a GET, after redirects, with its body unread; the caller closes it and its connection.

    `timeout` limits each wait for the network, in seconds. Raises `InvalidImage` for a URL or a redirect that is not
    followed, and `OSError` or `http.client.HTTPException` if the server does not answer as it should.
    """
    for _ in range(MAX_REDIRECTS + 1):
        target = Target.of(url)
        connection, response = _ask(target, headers, timeout, allow_private=allow_private)
        location = response.getheader("Location")
        if response.status not in REDIRECTS or location is None:
            return response, connection
        response.close()
        connection.close()
        url = urljoin(target.url, _decoded(location))
    raise InvalidImage(f"image: more than {MAX_REDIRECTS} redirects")


def _ask(
    target: Target, headers: dict[str, str], timeout: float, *, allow_private: bool
) -> tuple[PinnedConnection, http.client.HTTPResponse]:
    """The answer from the first address that a connection can be made to."""
    failure: OSError | None = None
    for address in resolve(target.host, target.port, allow_private=allow_private):
        connection = PinnedConnection(target, address, timeout)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            failure = error
            continue
        try:
            if target.authorization is not None:
                headers = {**headers, "Authorization": target.authorization}
            connection.request("GET", target.path, headers=headers)
            return connection, connection.getresponse()
        except BaseException:  # whatever it is, the caller gets no connection to close
            connection.close()
            raise
    assert failure is not None  # `resolve` returns at least one address
    raise failure


def _decoded(location: str) -> str:
    """A Location header, whose bytes arrive as Latin-1, as the text that the server meant: most send raw UTF-8.

    Bytes that are not UTF-8 are percent-encoded one by one.
    """
    raw = location.encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return quote(raw, safe="".join(map(chr, range(0x21, 0x7F))))
