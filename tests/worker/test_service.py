import asyncio
import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_core.errors import OutOfMemory
from sd_core.request import MAX_SEED
from tests.support.pictures import data_uri, picture_of
from worker.identity import ModelIdentity
from worker.log import configure
from worker.service import Service, run_job


def run(service: Service, payload: Any, **job: Any) -> dict[str, Any]:
    configure(service.settings.log_level)
    response = asyncio.run(run_job({"id": "job-1", "input": payload, **job}, service))
    json.dumps(response, allow_nan=False, ensure_ascii=False).encode("utf-8")
    return response


def plain(width: int = 64, height: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), "red")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_prompt_becomes_a_stored_image(service: Service, engine: Any, capsys: pytest.CaptureFixture[str]) -> None:
    response = run(service, {"prompt": "a cat", "seed": 3, "uid": "u", "width": 72, "height": 64})
    assert response["message"] == "success"
    with Image.open(response["outputs"][0]) as stored:
        assert stored.size == (72, 64)
    assert response["warnings"] == ["drawn by a stand-in"]
    assert engine.requests[0].seeds == [3]
    (line,) = lines(capsys)
    assert {name: line[name] for name in ("uid", "size", "steps", "sampler", "seed", "outcome", "requestId")} == {
        "uid": "u", "size": "72x64", "steps": 25, "sampler": "dpmpp_2m_karras", "seed": 3, "outcome": "success",
        "requestId": "job-1",
    }  # fmt: skip
    assert {*line["timings_ms"]} == {"queue", "encode", "denoise", "decode", "respond"}
    assert line["outputs"] == response["outputs"]


def test_the_default_size_is_the_models_native_size(service: Service, engine: Any) -> None:
    response = run(service, {"prompt": "a cat"})
    assert (engine.requests[0].width, engine.requests[0].height) == (64, 64)
    assert response["parameters"]["width"] == 64


def test_the_response_names_the_model_that_the_job_asked_for(service: Service, engine: Any) -> None:
    other = ModelIdentity("other", "cd" * 32, service.settings.outputs)
    limits = replace(service.limits, native_sizes={**service.limits.native_sizes, "other": 128})
    both = replace(service, identities={**service.identities, "other": other}, limits=limits)
    named = run(both, {"prompt": "a cat", "model": "other.safetensors [0123456789]"})
    default = run(both, {"prompt": "a cat"})
    assert (named["model"], default["model"]["name"]) == ({"name": "other", "sha256": "cd" * 32}, "tiny")
    assert [(request.model, request.width) for request in engine.requests] == [("other", 128), ("tiny", 64)]
    with Image.open(named["outputs"][0]) as stored:
        assert "Model hash: cdcdcdcdcd, Model: other" in stored.info["parameters"]


def test_an_image_makes_it_image_to_image(service: Service, engine: Any) -> None:
    response = run(service, {"prompt": "x", "image": data_uri(plain(131, 70)), "strength": 0.5})
    request = engine.requests[0]
    assert (request.width, request.height, request.strength) == (128, 64, 0.5)
    assert request.image.shape == (64, 128, 3)
    assert np.array_equal(request.image[30, 30], [255, 0, 0])
    assert response["parameters"]["strength"] == 0.5


def test_an_image_is_resized_to_the_requested_size(service: Service, engine: Any) -> None:
    run(service, {"prompt": "x", "init_images": [data_uri(plain())], "width": 72, "height": 80})
    assert engine.requests[0].image.shape == (80, 72, 3)


def test_a_large_image_is_scaled_under_the_pixel_limit(make_service: Callable[..., Service], engine: Any) -> None:
    service = make_service(SD_MAX_PIXELS=str(2 * 128 * 64))
    run(service, {"prompt": "x", "image": data_uri(plain(512, 256)), "num_images": 2})
    assert engine.requests[0].image.shape == (64, 128, 3)


def test_an_animation_brings_a_warning(service: Service) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:])
    response = run(service, {"prompt": "x", "image": base64.b64encode(file.getvalue()).decode()})
    assert "image is animated: its first frame was used" in response["warnings"]


def test_a_url_of_an_internal_address_is_refused(service: Service, engine: Any) -> None:
    response = run(service, {"prompt": "x", "image_url": "http://127.0.0.1:9/x.png"})
    assert response["error_code"] == "invalid_image"
    assert "non-public address" in response["error"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (None, "invalid_input"),
        ([], "invalid_input"),
        ("text", "invalid_input"),
        ({}, "invalid_input"),
        ({"prompt": "x", "steps": "25"}, "invalid_input"),
        ({"prompt": "\ud800", "uid": "\ud800"}, "invalid_input"),
        ({"prompt": "x", "image": "not base64!!"}, "invalid_image"),
        ({"prompt": "x", "image": " https://127.0.0.1/x.png"}, "invalid_image"),
        ({"prompt": "x", "image": base64.b64encode(b"no picture").decode()}, "invalid_image"),
    ],
)
def test_a_bad_job_is_answered_with_its_code(
    service: Service, engine: Any, payload: Any, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    response = run(service, payload)
    assert {*response} == {"error", "error_code", "message", "uid"}
    assert response["error"].startswith(f"{code}: ")
    assert (response["error_code"], response["message"]) == (code, "error")
    assert engine.requests == []
    (line,) = lines(capsys)
    assert (line["level"], line["outcome"], line["uid"]) == ("ERROR", code, response["uid"])
    assert "traceback" not in line
    assert run(service, {"prompt": "still here"})["message"] == "success"


def test_a_job_without_input_is_answered(service: Service) -> None:
    response = asyncio.run(run_job({"id": "x"}, service))
    assert response["error"].startswith("invalid_input: input: is missing")


@pytest.mark.parametrize("uid", ["../../etc/passwd", "a\0b", "😀" * 128, "CON", ".hidden"])
def test_a_hostile_uid_comes_back_and_writes_only_to_the_outputs(service: Service, tmp_path: Path, uid: str) -> None:
    response = run(service, {"prompt": "x", "uid": uid})
    assert response["uid"] == uid
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [str(path) for path in files] == response["outputs"]
    assert files[0].parent == tmp_path / "outputs"


def test_seeds_wrap_at_the_largest(service: Service) -> None:
    assert run(service, {"prompt": "x", "seed": MAX_SEED, "num_images": 2})["seeds"] == [MAX_SEED, 0]


@pytest.mark.parametrize("error", [OutOfMemory("it is too large"), MemoryError()])
def test_too_little_memory_is_an_out_of_memory_failure(service: Service, engine: Any, error: Exception) -> None:
    engine.error = error
    response = run(service, {"prompt": "x"})
    assert response["error"].startswith("out_of_memory: ")


def test_the_traceback_of_an_unexpected_error_is_only_in_the_log(
    service: Service, engine: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.error = RuntimeError("s3cret detail")
    response = run(service, {"prompt": "x", "uid": "u"})
    assert response["error_code"] == "internal"
    assert "s3cret" not in json.dumps(response)
    (line,) = lines(capsys)
    assert "RuntimeError: s3cret detail" in line["traceback"]
    assert line["uid"] == "u"


def test_a_full_disk_is_a_storage_failure(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    response = run(service, {"prompt": "x"})
    assert response["error"].startswith("storage_failed: ")
    assert "No space left" in response["error"]


def test_a_too_large_response_names_the_stored_images(make_service: Callable[..., Service], tmp_path: Path) -> None:
    response = run(make_service(SD_MAX_RESPONSE_MB="0.001"), {"prompt": "x", "width": 512, "height": 512})
    assert response["error_code"] == "payload_too_large"
    (stored,) = (tmp_path / "outputs").iterdir()
    assert str(stored) in response["error"]


def test_progress_is_sent_before_the_response_and_never_after(service: Service, engine: Any) -> None:
    engine.hangs = True
    told: list[Any] = []

    async def send(message: Any) -> None:
        engine.hanging.set_result(engine.drawn(engine.requests[0]))
        await asyncio.sleep(0.2)  # until after the pictures are encoded
        told.append(message)

    async def draw() -> dict[str, Any]:
        job = {"id": "1", "input": {"prompt": "x", "preview": True}}
        task = asyncio.create_task(run_job(job, service, send))
        assert await asyncio.to_thread(engine.asked.wait, 60)
        engine.tell(3)
        response = await task
        told.append("response")
        engine.tell(4)
        await asyncio.sleep(0.1)
        return response

    response = asyncio.run(draw())
    message, end = told
    assert (message["step"], message["percent"], end) == (3, 30, "response")
    assert picture_of(message["preview"]).size == (8, 8)
    assert response["warnings"] == ["drawn by a stand-in"]
    assert "preview" not in response["parameters"]


def test_without_a_sender_a_preview_brings_a_warning(service: Service, engine: Any) -> None:
    response = run(service, {"prompt": "x", "preview": True})
    assert engine.observers == [None]
    assert "preview did nothing: progress is sent only for jobs from RunPod's queue" in response["warnings"]


def test_a_full_engine_is_a_busy_failure(service: Service, engine: Any) -> None:
    engine.full = True
    response = run(service, {"prompt": "x"})
    assert (response["error"], response["error_code"]) == ("busy: enough jobs wait already", "busy")


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_prompts_are_logged_only_at_debug_and_images_never(
    make_service: Callable[..., Service], level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service = make_service(LOG_LEVEL=level)
    picture = data_uri(plain())
    sent = run(service, {"prompt": "s3cret wish", "negative_prompt": "s3cret fear", "image": picture})
    run(service, {"prompt": "s3cret wish", "image": picture, "steps": 0})
    run(service, {"prompt": "s3cret wish\0", "image": "s3cret"})
    printed = capsys.readouterr().out
    assert ("s3cret wish" in printed) == (level == "DEBUG")
    assert ("s3cret fear" in printed) == (level == "DEBUG")
    assert picture[-60:] not in printed
    assert sent["image"][:60] not in printed


def test_urls_to_private_addresses_are_as_the_settings_say(service: Service) -> None:
    job = {"prompt": "x", "image": "http://127.0.0.1:1/x.png"}
    assert "non-public address 127.0.0.1" in run(service, job)["error"]
    open_service = replace(service, settings=replace(service.settings, allow_private_urls=True))
    assert "could not be fetched from 127.0.0.1" in run(open_service, job)["error"]
