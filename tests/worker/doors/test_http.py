"""The HTTP server on the loopback interface, with the stand-in engine behind it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
import requests
import uvicorn
from fastapi import FastAPI, Response

from worker.doors import body as bodies
from worker.doors.connection import ConnectionLimits, connection_class
from worker.doors.http import create_app
from worker.log import configure
from worker.service import Service
from worker.settings import StartupError


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


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(lambda: service) as url:
        yield url


def post(url: str, body: bytes | str, content_type: str | None = "application/json") -> requests.Response:
    headers = {} if content_type is None else {"Content-Type": content_type}
    return requests.post(f"{url}/inference", data=body, headers=headers, timeout=30)


def assert_failure(response: requests.Response, status: int, reason: str) -> None:
    body = response.json()
    assert response.status_code == status
    assert {*body} == {"error", "error_code", "message", "uid"}
    assert body["error"].startswith(f"{body['error_code']}: ")
    assert reason in body["error"]
    assert "detail" not in body


def test_a_job_is_flat_in_the_body(url: str) -> None:
    response = requests.post(f"{url}/inference", json={"prompt": "a cat", "seed": 4, "uid": "u"}, timeout=30)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body["message"], body["uid"], body["seed"]) == ("success", "u", 4)


def test_json_needs_no_content_type_and_may_have_a_derived_one(url: str) -> None:
    body = json.dumps({"prompt": "x"})
    assert post(url, body, None).status_code == 200
    assert post(url, body, "application/vnd.api+json; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"prompt": ', "body: is not JSON"),
        ("", "body: is not JSON"),
        (b"\xff\xfe\x00", "body: is not JSON"),
        ("[" * 100_000, "body: is not JSON"),
        ('{"steps": ' + "9" * 5_000 + "}", "body: is not JSON"),
        ("null", "input: is missing"),
        ("[]", "a list is not an object"),
        ('"x"', "'x' is not an object"),
        ("{}", "prompt: is required"),
        ('{"prompt": "x", "steps": 0}', "steps: 0"),
        ('{"prompt": "x", "scale": NaN}', "scale: nan"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        ('{"prompt": "x", "image": "not base64!!"}', "image:"),
        ('{"input": {"prompt": "x"}}', "input: unknown field"),
    ],
)
def test_bad_input_is_a_400_with_the_failure(url: str, body: Any, reason: str) -> None:
    assert_failure(post(url, body), 400, reason)


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", "x"]
)
def test_another_content_type_is_refused(url: str, content_type: str) -> None:
    assert_failure(post(url, '{"prompt": "x"}', content_type), 400, "is not JSON; send the header")


def test_the_body_is_limited_whether_or_not_its_length_is_declared(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", 1000)
    assert_failure(post(url, "x" * 1001), 413, "over the limit of 1,000 bytes")
    chunks = (b"x" * 300 for _ in range(5))
    response = requests.post(f"{url}/inference", data=chunks, headers={"Content-Type": "application/json"}, timeout=30)
    assert_failure(response, 413, "over the limit of 1,000 bytes")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/inference", 405), ("POST", "/ping", 405), ("GET", "/", 404), ("GET", "/docs", 404)],
)
def test_unknown_routes_and_methods_are_failures_too(url: str, method: str, path: str, status: int) -> None:
    assert_failure(requests.request(method, url + path, timeout=30), status, "only POST /inference and GET /ping")


def test_an_internal_error_is_a_500(url: str, engine: Any) -> None:
    engine.error = RuntimeError("s3cret")
    response = post(url, '{"prompt": "x"}')
    assert_failure(response, 500, "internal: ")
    assert "s3cret" not in response.text


def test_a_full_engine_is_a_503_with_retry_after(url: str, engine: Any) -> None:
    engine.full = True
    response = post(url, '{"prompt": "x"}')
    assert_failure(response, 503, "busy: enough jobs wait already")
    assert int(response.headers["Retry-After"]) >= 1
    engine.full = False
    assert post(url, '{"prompt": "x"}').status_code == 200


def test_requests_over_the_number_of_jobs_are_refused_before_their_bodies_are_read(
    service: Service, engine: Any
) -> None:
    engine.hangs = True
    with serving(lambda: service, max_jobs=1) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, '{"prompt": "x"}')
        assert engine.asked.wait(30)
        connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/inference", headers={"Content-Type": "application/json", "Content-Length": "9"})
        refused = connection.getresponse()
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert b"busy: 1 jobs are already waiting or running" in refused.read()
        connection.close()
        engine.hanging.set_result(engine.drawn(engine.requests[0]))
        assert first.result().status_code == 200
        engine.hangs = False
        assert post(url, '{"prompt": "x"}').status_code == 200


HEAD = "POST /inference HTTP/1.1\r\nHost: localhost\r\n"
JOB = '{"prompt": "x"}'


class Client:
    """A connection on which a test sends any part of a request."""

    def __init__(self, url: str, sent: str = "") -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.send(sent)

    def send(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def send_body(self, text: str, length: int | None = None) -> None:
        """The whole head and `text`, of a body that is declared to be of `length` bytes."""
        self.send(f"{HEAD}Content-Length: {length or len(text)}\r\n\r\n{text}")

    def response(self) -> tuple[int, dict[str, Any]]:
        """The status and the body of one response."""
        response = HTTPResponse(self.socket)
        response.begin()
        return response.status, json.loads(response.read())

    def received(self) -> bytes:
        """All until the server closes the connection, also if it does that by a reset."""
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


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    with ExitStack() as stack:

        def connect(url: str, sent: str = "") -> Client:
            client = Client(url, sent)
            stack.callback(client.socket.close)
            return client

        yield connect


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


Connect = Callable[..., Client]


def test_slow_senders_hold_no_place_among_the_jobs(service: Service, connect: Connect) -> None:
    with serving(lambda: service, max_jobs=2) as url:
        for _ in range(100):
            connect(url, HEAD)
            connect(url).send_body(JOB, length=1000)
        for _ in range(5):
            assert post(url, JOB).status_code == 200


def test_a_body_takes_its_place_when_it_has_arrived(service: Service, engine: Any, connect: Connect) -> None:
    engine.hangs = True
    with serving(lambda: service, max_jobs=1) as url, ThreadPoolExecutor(1) as pool:
        slow = connect(url)
        slow.send_body(JOB, length=len(JOB) + 1)
        first = pool.submit(post, url, JOB)
        assert engine.asked.wait(30)
        slow.send(" ")
        status, body = slow.response()
        assert (status, body["error_code"]) == (503, "busy")
        engine.hanging.set_result(engine.drawn(engine.requests[0]))
        assert first.result().status_code == 200


def test_a_body_that_takes_too_long_is_a_408(
    url: str, engine: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.3)
    slow = connect(url)
    slow.send_body(JOB, length=1000)
    time.sleep(0.15)
    slow.send(" ")
    status, body = slow.response()
    assert (status, body["error"]) == (408, "invalid_input: body: did not arrive within 0.3 seconds")
    assert engine.requests == []


def test_bodies_that_arrive_are_limited_together(url: str, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_ARRIVING_BYTES", 1000)
    slow = connect(url)
    slow.send_body("x" * 900, length=2000)
    wait_until(lambda: post(url, '{"prompt": "' + "x" * 500 + '"}').status_code == 503)
    assert post(url, JOB).status_code == 200
    slow.socket.close()
    wait_until(lambda: post(url, '{"prompt": "' + "x" * 500 + '"}').status_code == 200)


@pytest.mark.parametrize("sent", ["", "P", HEAD])
def test_a_head_has_a_time_limit(service: Service, connect: Connect, sent: str) -> None:
    with serving(lambda: service, limits=ConnectionLimits(idle_s=0.3)) as url:
        began = time.monotonic()
        assert connect(url, sent).received() == b""
        assert 0.2 < time.monotonic() - began < 10


def test_bytes_now_and_then_do_not_extend_the_time_limit(service: Service, connect: Connect) -> None:
    with serving(lambda: service, limits=ConnectionLimits(idle_s=0.5)) as url:
        client = connect(url, "GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n" + HEAD)  # the next head, half-sent
        assert client.socket.recv(65536).startswith(b"HTTP/1.1 200")

        def still_open() -> bool:
            try:
                client.send("X: y\r\n")
            except OSError:
                return False
            return not client.is_closed()

        began = time.monotonic()
        wait_until(lambda: not still_open())
        assert time.monotonic() - began < 10


def test_a_job_may_take_longer_than_a_head(service: Service, engine: Any) -> None:
    engine.hangs = True
    with serving(lambda: service, limits=ConnectionLimits(idle_s=0.2)) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, url, JOB)
        assert engine.asked.wait(30)
        time.sleep(0.6)
        engine.hanging.set_result(engine.drawn(engine.requests[0]))
        assert answer.result().status_code == 200


def test_a_response_that_is_not_read_is_given_up_and_one_that_is_read_slowly_is_not(connect: Connect) -> None:
    size = 30_000_000
    app = FastAPI()
    app.add_api_route("/ping", lambda: Response(b"x" * size))
    with running(app, ConnectionLimits(idle_s=0.4)) as url:
        unread, read = (connect(url, "GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(2))
        received = 0
        while received < size and (block := read.socket.recv(300_000)):
            received += len(block)
            time.sleep(0.02)
        assert received >= size
        assert len(unread.received()) < size


def test_too_many_connections_drop_the_one_that_has_sent_for_the_longest_time(
    service: Service, engine: Any, connect: Connect
) -> None:
    engine.hangs = True
    with serving(lambda: service, limits=ConnectionLimits(max_connections=3)) as url, ThreadPoolExecutor(1) as pool:
        job = pool.submit(post, url, JOB)
        assert engine.asked.wait(30)
        slow = [connect(url, HEAD), connect(url)]
        slow[1].send_body(JOB, length=1000)
        time.sleep(0.2)
        assert requests.get(f"{url}/ping", timeout=30).status_code == 200
        assert [client.is_closed() for client in slow] == [True, False]
        engine.hanging.set_result(engine.drawn(engine.requests[0]))
        assert job.result().status_code == 200


def test_a_client_that_hangs_up_while_it_sends_is_one_line(
    url: str, connect: Connect, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("INFO")
    client = connect(url)
    client.send_body(JOB, length=1000)
    time.sleep(0.2)
    client.socket.close()
    printed = ""

    def is_logged() -> bool:
        nonlocal printed
        printed += capsys.readouterr().out
        return bool(printed)

    wait_until(is_logged)
    time.sleep(0.2)
    printed += capsys.readouterr().out
    assert [json.loads(line)["message"] for line in printed.splitlines()] == [
        "a client hung up before its request had arrived"
    ]
    assert not caplog.records


def test_ping_is_200_once_the_model_is_loaded_and_jobs_wait_for_it(service: Service) -> None:
    loaded = threading.Event()

    def load() -> Service:
        loaded.wait()
        return service

    with serving(load) as url:
        assert requests.get(f"{url}/ping", timeout=30).status_code == 204
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(post(url, '{"prompt": "x"}').status_code))
        waiting.start()
        assert_failure(post(url, "{"), 400, "is not JSON")
        loaded.set()
        waiting.join()
        assert answers == [200]
        assert requests.get(f"{url}/ping", timeout=30).status_code == 200


def test_a_model_that_cannot_be_loaded_is_never_ready() -> None:
    def load() -> Service:
        raise StartupError("no model")

    with serving(load) as url:
        assert_failure(post(url, '{"prompt": "x"}'), 500, "could not start")
        assert requests.get(f"{url}/ping", timeout=30).status_code == 204


def test_a_client_that_hangs_up_cancels_its_job(url: str, engine: Any) -> None:
    engine.hangs = True
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{url}/inference", json={"prompt": "x"}, timeout=0.5)
    assert engine.asked.wait(10)
    deadline = time.monotonic() + 10
    while not engine.hanging.cancelled() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.hanging.cancelled()
