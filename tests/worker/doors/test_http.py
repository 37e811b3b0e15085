"""The HTTP server on the loopback interface, with the stand-in engine behind it."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.support.http import post, serving
from worker.doors import body as bodies
from worker.service import Service
from worker.settings import StartupError


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(lambda: service) as url:
        yield url


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
    assert_failure(response, 503, "busy: the queue is full")
    assert int(response.headers["Retry-After"]) >= 1
    engine.full = False
    assert post(url, '{"prompt": "x"}').status_code == 200


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
    assert engine.submitted.wait(10)
    deadline = time.monotonic() + 10
    while not engine.hanging.cancelled() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.hanging.cancelled()
