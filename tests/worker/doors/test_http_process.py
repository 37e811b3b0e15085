"""`python -m worker serve` in a process of its own, with tiny random weights."""

import base64
import io
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from PIL import Image

from tests.support import breaking
from tests.support.http import HEAD, JOB, Client

Start = Callable[..., Any]
HALF = f"{HEAD}Content-Length: 1000\r\n\r\n{JOB}"


@contextmanager
def half_sent(url: str, request: str) -> Iterator[None]:
    with Client(url, request).socket:
        yield


def pings_until_ready(worker: Any, url: str) -> list[int]:
    """The statuses that came."""
    seen: list[int] = []

    def ready() -> bool:
        try:
            seen.append(requests.get(f"{url}/ping", timeout=5).status_code)
        except requests.ConnectionError:
            return False
        return seen[-1] == 200

    worker.wait_for(ready)
    return seen


def test_the_server_loads_generates_and_stops(start_worker: Start, free_port: int) -> None:
    worker = start_worker("-m", "worker", "serve", PORT=str(free_port))
    url = f"http://127.0.0.1:{free_port}"
    assert set(pings_until_ready(worker, url)) <= {204, 200}
    response = requests.post(f"{url}/inference", json={"prompt": "a s3cret", "steps": 2, "height": 72}, timeout=300)
    assert response.status_code == 200
    with Image.open(io.BytesIO(base64.b64decode(response.json()["image"]))) as image:
        assert image.size == (64, 72)
    assert requests.post(f"{url}/inference", json={}, timeout=300).status_code == 400
    assert [line["outcome"] for line in worker.lines() if "outcome" in line] == ["success", "invalid_input"]
    assert "s3cret" not in worker.printed
    assert worker.end() == 0
    assert "Traceback" not in worker.printed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_server_answers_its_jobs_and_drops_half_sent_requests(
    start_worker: Start, free_port: int, number: int
) -> None:
    worker = start_worker("-m", "worker", "serve", PORT=str(free_port))
    url = f"http://127.0.0.1:{free_port}"
    pings_until_ready(worker, url)
    job = {"prompt": "x", "steps": 150, "width": 256, "height": 256, "sampler": "heun"}
    with ThreadPoolExecutor(2) as pool, half_sent(url, HEAD), half_sent(url, HALF):
        running = [pool.submit(requests.post, f"{url}/inference", json=job, timeout=300) for _ in range(2)]
        time.sleep(1)
        worker.process.send_signal(number)
        assert [answer.result().json()["message"] for answer in running] == ["success"] * 2
        assert worker.exit_code() == 0
    assert "Traceback" not in worker.printed


@pytest.mark.slow
def test_a_server_that_is_stopped_while_it_loads_ends_too(start_worker: Start, free_port: int) -> None:
    worker = start_worker("-m", "worker", "serve", PORT=str(free_port))
    worker.wait_for(lambda: "serving POST" in worker.printed)
    assert worker.end() == 0
    assert "Traceback" not in worker.printed


@pytest.mark.slow
def test_a_client_that_hangs_up_while_it_sends_leaves_one_line(start_worker: Start, free_port: int) -> None:
    worker = start_worker("-m", "worker", "serve", PORT=str(free_port))
    url = f"http://127.0.0.1:{free_port}"
    pings_until_ready(worker, url)
    before = worker.printed
    with half_sent(url, HALF):
        time.sleep(0.5)
    worker.wait_for(lambda: worker.printed != before)
    time.sleep(0.5)
    (line,) = worker.printed.removeprefix(before).splitlines()
    assert json.loads(line)["message"] == "a client hung up before its request had arrived"


def test_a_server_whose_engine_has_failed_answers_and_ends(start_worker: Start, free_port: int) -> None:
    worker = start_worker("-c", breaking.SERVER, PORT=str(free_port))
    url = f"http://127.0.0.1:{free_port}"
    pings_until_ready(worker, url)
    response = requests.post(f"{url}/inference", json={"prompt": "x", "steps": 2}, timeout=300)
    assert (response.status_code, response.json()["error_code"]) == (500, "internal")
    assert worker.exit_code() == 1


@pytest.mark.slow
def test_a_server_without_a_model_ends_with_one_message(start_worker: Start, free_port: int, tmp_path: Any) -> None:
    worker = start_worker("-m", "worker", "serve", PORT=str(free_port), SD_WEIGHTS=str(tmp_path / "nowhere"))
    assert worker.exit_code() == 1
    assert f"{tmp_path / 'nowhere'}: does not exist" in worker.printed
    assert "Traceback" not in worker.printed


@pytest.mark.slow
def test_bad_settings_end_the_server_before_it_listens(start_worker: Start) -> None:
    worker = start_worker("-m", "worker", "serve", PORT="http")
    assert worker.exit_code() == 1
    assert "PORT='http' is not a whole number" in worker.printed
    assert "Traceback" not in worker.printed


def test_without_a_command_it_prints_its_usage(start_worker: Start) -> None:
    worker = start_worker("-m", "worker")
    assert worker.exit_code() == 2
    assert "serve" in worker.printed
