"""Clients that send or read slowly, or hang up, do not keep others out."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPConnection
from typing import Any

import pytest
import requests
from fastapi import FastAPI, Response

from tests.support.http import HEAD, JOB, Client, post, running, serving, wait_until
from worker.doors import body as bodies
from worker.doors.connection import ConnectionLimits
from worker.log import configure
from worker.service import Service

Connect = Callable[..., Client]


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(lambda: service) as url:
        yield url


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    with ExitStack() as stack:

        def connect(url: str, sent: str = "") -> Client:
            client = Client(url, sent)
            stack.callback(client.socket.close)
            return client

        yield connect


def test_requests_over_the_number_of_jobs_are_refused_before_their_bodies_are_read(
    service: Service, engine: Any
) -> None:
    engine.hangs = True
    with serving(lambda: service, max_jobs=1) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, '{"prompt": "x"}')
        assert engine.submitted.wait(30)
        connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
        connection.request("POST", "/inference", headers={"Content-Type": "application/json", "Content-Length": "9"})
        refused = connection.getresponse()
        assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
        assert b"busy: 1 jobs are already waiting or running" in refused.read()
        connection.close()
        engine.hanging.set_result(engine.result_of(engine.requests[0]))
        assert first.result().status_code == 200
        engine.hangs = False
        assert post(url, '{"prompt": "x"}').status_code == 200


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
        assert engine.submitted.wait(30)
        slow.send(" ")
        status, body = slow.response()
        assert (status, body["error_code"]) == (503, "busy")
        engine.hanging.set_result(engine.result_of(engine.requests[0]))
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
        assert engine.submitted.wait(30)
        time.sleep(0.6)
        engine.hanging.set_result(engine.result_of(engine.requests[0]))
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
        assert engine.submitted.wait(30)
        slow = [connect(url, HEAD), connect(url)]
        slow[1].send_body(JOB, length=1000)
        time.sleep(0.2)
        assert requests.get(f"{url}/ping", timeout=30).status_code == 200
        assert [client.is_closed() for client in slow] == [True, False]
        engine.hanging.set_result(engine.result_of(engine.requests[0]))
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
