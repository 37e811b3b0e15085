"""https against a real server on the loopback interface, with a certificate made here."""

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sd_core.errors import InvalidImage
from worker.io.fetch import fetch
from worker.io.http_client import tls_context

HOST = "images.example"


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.headers['Host']}{self.path}".encode())

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class QuietServer(HTTPServer):
    def handle_error(self, *_args: object) -> None:
        """A client that refuses the certificate is what some tests are about."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `HOST` that is its own authority, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def port(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = QuietServer(("127.0.0.1", 0), Server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    loopback = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.server_port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kind: loopback)
    tls_context.cache_clear()
    yield server.server_port
    tls_context.cache_clear()
    server.shutdown()
    server.server_close()


def test_the_certificate_is_checked_for_the_host_of_the_url(
    port: int, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    body = asyncio.run(fetch(f"https://{HOST}:{port}/a.png", allow_private=True))
    assert body == f"{HOST}:{port}/a.png".encode()
    for host in ("other.example", "127.0.0.1"):
        with pytest.raises(InvalidImage, match=r"SSLCertVerificationError"):
            asyncio.run(fetch(f"https://{host}:{port}/a.png", allow_private=True))


def test_a_certificate_of_an_unknown_authority_is_refused(port: int) -> None:
    with pytest.raises(InvalidImage, match=r"could not be fetched from images.example \(SSLCertVerificationError\)"):
        asyncio.run(fetch(f"https://{HOST}:{port}/a.png", allow_private=True))
