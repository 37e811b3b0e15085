"""`handler.py` through the real SDK, in processes of their own, with tiny random weights."""

import base64
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from tests.support import breaking
from tests.support.pictures import data_uri, noise_picture, picture_of
from tests.support.platform import KEY, POD, PlatformStandIn

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., Any]


def stored_by(worker: Any, tmp_path: Path) -> Path:
    """The one stored picture, which the worker must have named."""
    (stored,) = (tmp_path / "outputs").iterdir()
    assert str(stored) in worker.printed
    with Image.open(stored) as image:
        image.load()
    return stored


def test_alone_it_runs_the_test_input_and_names_the_stored_picture(start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("handler.py")
    assert worker.exit_code() == 0, worker.printed
    stored = stored_by(worker, tmp_path)
    asked = json.loads((ROOT / "test_input.json").read_text())["input"]
    (job,) = [line for line in worker.lines() if line["message"] == "job done"]
    assert (job["outcome"], job["seed"], job["outputs"]) == ("success", asked["seed"], [str(stored)])
    assert asked["prompt"] not in worker.printed
    assert base64.b64encode(stored.read_bytes()).decode()[:40] not in worker.printed


@pytest.mark.slow
def test_a_test_input_with_a_picture_at_debug(start_worker: Start, tmp_path: Path) -> None:
    picture = data_uri(noise_picture(80, 72))
    job = {"input": {"prompt": "a s3cret wish", "image": picture, "strength": 0.5, "steps": 2}}
    worker = start_worker("handler.py", "--test_input", json.dumps(job), SD_DEBUG="1")
    assert worker.exit_code() == 0, worker.printed
    stored = stored_by(worker, tmp_path)
    assert "a s3cret wish" in worker.printed
    assert picture[-60:] not in worker.printed
    assert picture[22:82] not in worker.printed
    assert base64.b64encode(stored.read_bytes()).decode()[:40] not in worker.printed
    (done,) = [line for line in worker.lines() if line["message"] == "job done"]
    assert (done["size"], done["image_to_image"]) == ("80x72", True)


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ({"input": {"prompt": "x", "steps": "25"}}, "invalid_input: steps: '25'"),
        ({"input": []}, "a list is not an object"),
    ],
)
def test_a_bad_test_input_ends_with_an_error(start_worker: Start, tmp_path: Path, job: Any, reason: str) -> None:
    worker = start_worker("handler.py", "--test_input", json.dumps(job))
    assert worker.exit_code() == 1
    assert reason in worker.printed
    assert "Traceback" not in worker.printed
    assert list((tmp_path / "outputs").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--test_input", "{bad"], "--test_input is not JSON: Expecting property name enclosed in double quotes"),
        (["--test_input", "[]"], "--test_input is not a JSON object"),
        (["--test_input", ""], "--test_input is empty"),
        (["--test_input"], "--test_input: expected one argument"),
        ([], "test_input.json is not JSON"),
    ],
)
def test_a_broken_test_job_is_one_line_before_the_model_is_loaded(
    process_environ: dict[str, str], tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "test_input.json").write_text("{'input': {}}")
    environ = {**process_environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "handler.py"), *arguments]
    ended = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    (printed,) = ended.stderr.splitlines()
    assert line in printed
    assert ended.stdout == ""
    assert not (tmp_path / "outputs").exists()


def without_traceback(worker: Any) -> str:
    assert worker.exit_code() == 1
    assert "Traceback" not in worker.printed
    assert "Starting Serverless Worker" not in worker.printed
    printed: str = worker.printed
    return printed


@pytest.mark.slow
def test_a_start_without_a_model_ends_with_one_message(start_worker: Start, tmp_path: Path, tiny_weights: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_weights, bare)
    bad_settings = start_worker("handler.py", SD_DEVICE="tpu", SD_MAX_BATCH="0")
    no_tokenizer = start_worker("handler.py", SD_WEIGHTS=str(bare))
    on_runpod = start_worker("handler.py", SD_WEIGHTS="", RUNPOD_POD_ID="pod")
    message = without_traceback(bad_settings)
    assert "SD_DEVICE='tpu'" in message
    assert "SD_MAX_BATCH='0'" in message
    assert "The tokenizer's vocab.json and merges.txt must lie beside" in without_traceback(no_tokenizer)
    message = without_traceback(on_runpod)
    assert "/runpod-volume/weights" in message
    assert "/workspace/weights" in message
    assert "the demo model is never used instead" in message
    assert "demo/weights" not in message


def test_a_child_process_loads_no_model(process_environ: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "def child(queue):\n"
        "    import handler\n"
        "    queue.put(['torch' in sys.modules, handler.service.cache_info().currsize])\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    process = context.Process(target=child, args=(queue,))\n"
        "    process.start()\n"
        "    print(queue.get(timeout=300))\n"
        "    process.join()\n"
    )
    environ = {**process_environ, "PYTHONPATH": str(ROOT), "SD_WEIGHTS": str(tmp_path / "nowhere")}
    printed = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, timeout=300)
    assert printed.stdout.strip() == "[False, 0]", printed.stderr


def test_importing_the_handler_warms_up_the_model_and_it_generates(
    process_environ: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "importer.py"
    script.write_text(
        "import asyncio, handler\n"
        "assert handler.service.cache_info().currsize == 1\n"
        "response = asyncio.run(handler.handler({'id': '1', 'input': {'prompt': 'x', 'steps': 2}}))\n"
        "assert response['message'] == 'success', response\n"
        "assert asyncio.run(handler.handler({'id': '2', 'input': []}))['error_code'] == 'invalid_input'\n"
    )
    environ = {**process_environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, script], env=environ, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.slow
def test_the_sdks_api_server(start_worker: Start, free_port: int) -> None:
    worker = start_worker("handler.py", "--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(free_port))
    url = f"http://127.0.0.1:{free_port}"

    def answers() -> bool:
        try:
            return requests.get(url, timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def ask(path: str, job: Any = None) -> dict[str, Any]:
        body: dict[str, Any] = requests.post(url + path, json=job, timeout=300).json()
        return body

    worker.wait_for(answers)
    done = ask("/runsync", {"input": {"prompt": "s3cret", "steps": 2, "width": 72}})
    assert done["status"] == "COMPLETED"
    assert picture_of(done["output"]["image"]).size == (72, 64)
    failed = ask("/runsync", {"input": {"prompt": "s3cret", "steps": 0}})
    assert failed["status"] == "FAILED"
    assert failed["error"].startswith("invalid_input: steps: 0")
    begun = ask("/run", {"input": {"prompt": "s3cret", "steps": 2, "num_images": 2, "seed": 7}})
    assert begun["status"] == "IN_PROGRESS"
    done = ask(f"/status/{begun['id']}")
    assert (done["status"], done["output"]["seeds"]) == ("COMPLETED", [7, 8])
    assert [picture_of(image).size for image in done["output"]["images"]] == [(64, 64)] * 2
    assert "s3cret" not in worker.printed
    worker.end()


@pytest.mark.slow
def test_a_worker_whose_engine_has_failed_answers_its_jobs_and_ends(
    start_worker: Start, runpod: PlatformStandIn
) -> None:
    for job_id in ("one", "two"):
        runpod.add(job_id, {"prompt": "x", "steps": 2})
    worker = start_worker("-c", breaking.HANDLER, **runpod.environ(), SD_MAX_CONCURRENCY="2")
    for job_id in ("one", "two"):
        assert runpod.result(job_id)["error"].startswith("internal: ")
    assert worker.exit_code() == 1
    (line,) = [line for line in worker.lines() if line["message"].startswith("the engine has failed")]
    assert "list index out of range" in json.dumps(line)


@pytest.mark.slow
def test_the_platforms_worker_loop(start_worker: Start, runpod: PlatformStandIn, tmp_path: Path) -> None:
    runpod.add("first", {"prompt": "s3cret", "steps": 2, "seed": 1, "uid": "é/😀"})
    worker = start_worker("handler.py", **runpod.environ(), SD_MAX_CONCURRENCY="2")
    first = runpod.result("first")
    assert "error" not in first
    assert first["output"]["uid"] == "é/😀"
    assert picture_of(first["output"]["image"]).size == (64, 64)

    bad = {
        "bad-field": {"prompt": "s3cret", "stepz": 1, "uid": "mine"},
        "bad-null": None,
        "bad-list": [],
        "bad-unicode": {"prompt": "\ud800"},
        "bad-image": {"prompt": "s3cret", "image": "not base64!!"},
    }
    for job_id, job_input in bad.items():
        runpod.add(job_id, job_input)
    for job_id in bad:
        result = runpod.result(job_id)
        assert isinstance(result["error"], str)
        assert result["error"].startswith(("invalid_input: ", "invalid_image: "))
        assert result["output"]["error_code"] == result["error"].partition(":")[0]
    assert runpod.result("bad-field")["output"]["uid"] == "mine"

    for index in range(4):
        runpod.add(f"many-{index}", {"prompt": "s3cret", "steps": 2, "seed": index})
    for index in range(4):
        assert runpod.result(f"many-{index}")["output"]["seed"] == index
    assert len(list((tmp_path / "outputs").iterdir())) == 5

    # A job that takes minutes is stopped; the job beside it and those after it are generated.
    runpod.add(
        "long", {"prompt": "s3cret", "steps": 150, "width": 512, "height": 512, "sampler": "heun", "uid": "long"}
    )
    worker.wait_for(lambda: "long | Started" in worker.printed or '"long", "message": "Started' in worker.printed)
    time.sleep(0.5)
    runpod.stop("long")
    worker.wait_for(lambda: any(line.get("outcome") == "cancelled" for line in worker.lines()))
    runpod.add("after", {"prompt": "s3cret", "steps": 2})
    assert runpod.result("after")["output"]["message"] == "success"
    assert '"long"' not in "".join(runpod.posted)

    ping = runpod.pings.get(timeout=300)
    assert ping["runpod_version"]
    assert set(runpod.takes) == {POD}
    assert KEY not in worker.printed
    assert "s3cret" not in worker.printed
    assert worker.end() == 0
    outcomes = [line["outcome"] for line in worker.lines() if "outcome" in line]
    assert sorted(outcomes) == sorted(["success"] * 6 + ["invalid_input"] * 4 + ["invalid_image", "cancelled"])
    assert {path.suffix for path in (tmp_path / "outputs").iterdir()} == {".png"}
