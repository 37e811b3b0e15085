"""The HTTP door on the loopback interface in this process, and a client that sends any part of a request."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from typing import Any

import requests
import uvicorn
from fastapi import FastAPI

from worker.doors.connection import ConnectionLimits, connection_class
from worker.doors.http import create_app
from worker.service import Service

HEAD = "POST /inference HTTP/1.1\r\nHost: localhost\r\n"
JOB = '{"prompt": "x"}'


@contextmanager
def serving(load: Callable[[], Service], max_jobs: int = 64, limits: ConnectionLimits | None = None) -> Iterator[str]:
    with running(create_app(load, lambda: None, max_jobs), limits or ConnectionLimits()) as url:
        yield url


@contextmanager
def running(app: FastAPI, limits: ConnectionLimits) -> Iterator[str]:
    config = uvicorn.Config(app, port=0, log_config=None, http=connection_class(limits), ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str, body: bytes | str, content_type: str | None = "application/json") -> requests.Response:
    headers = {} if content_type is None else {"Content-Type": content_type}
    return requests.post(f"{url}/inference", data=body, headers=headers, timeout=30)


class Client:
    """A connection on which a test sends any part of a request."""

    def __init__(self, url: str, sent: str = "") -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.send(sent)

    def send(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def send_body(self, text: str, length: int | None = None) -> None:
        """The whole head, and `text` of a body whose declared length is `length` bytes."""
        self.send(f"{HEAD}Content-Length: {length or len(text)}\r\n\r\n{text}")

    def response(self) -> tuple[int, dict[str, Any]]:
        """The status and the body of one response."""
        response = HTTPResponse(self.socket)
        response.begin()
        return response.status, json.loads(response.read())

    def received(self) -> bytes:
        """All bytes until the server closes or resets the connection."""
        data = b""
        with suppress(ConnectionResetError), self.socket:
            while block := self.socket.recv(65536):
                data += block
        return data

    def is_closed(self) -> bool:
        self.socket.settimeout(0.01)
        try:
            return self.socket.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
