import asyncio
import base64
import io
import json
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager

from sd_core.errors import InvalidRequest
from sd_core.request import Result
from worker.api import response as responding
from worker.api.job import Job, Limits, parse_request
from worker.api.response import PayloadTooLarge, Response, encode, failure, new_encoders, success
from worker.io.metadata import generation_text

MODEL = {"name": "tiny", "sha256": "0123456789abcdef" * 4}


LIMITS = Limits(2**22, {"tiny": 64})


def parse(**fields: Any) -> Job:
    return parse_request({"prompt": "a cat", "uid": "u", "width": 72, **fields}, LIMITS)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 72, 3), np.uint8)


def respond(job: Job, outputs: Path, max_bytes: int = 10_000_000) -> Response:
    images = [picture(seed) for seed in range(job.request.num_images)]
    result = Result(images, job.request.seeds, {"queue": 1.26, "denoise": 20.0}, ["a note"])
    return asyncio.run(success(job, result, MODEL, outputs, max_bytes, new_encoders()))


def test_one_image(tmp_path: Path) -> None:
    response = respond(parse(seed=7), tmp_path)
    assert {*response} == {
        "message", "uid", "image", "seed", "outputs", "parameters", "timings_ms", "model", "warnings"
    }  # fmt: skip
    assert (response["message"], response["uid"], response["seed"]) == ("success", "u", 7)
    data = base64.b64decode(response["image"])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture())
    (stored,) = response["outputs"]
    assert Path(stored).read_bytes() == data
    assert response["model"] == MODEL
    assert response["warnings"] == ["a note"]
    assert response["timings_ms"]["queue"] == 1.3
    assert response["timings_ms"]["respond"] > 0


def test_texts_and_files_of_images_are_made_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[str]()

    def noting(real: Any, *arguments: Any, **named: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*arguments, **named)

    for name in ("infotext", "encode"):
        monkeypatch.setattr(responding, name, partial(noting, getattr(responding, name)))
    respond(parse(num_images=3), tmp_path)
    assert len(threads) == 6 and all(name.startswith("encoder") for name in threads)


def test_several_images_are_sent_once_and_in_order(tmp_path: Path) -> None:
    response = respond(parse(seed=2**63 - 1, num_images=3), tmp_path)
    assert "image" not in response
    assert "seed" not in response
    assert response["seeds"] == [2**63 - 1, 0, 1]
    for index, (sent, stored) in enumerate(zip(response["images"], response["outputs"], strict=True)):
        assert Path(stored).read_bytes() == base64.b64decode(sent)
        with Image.open(stored) as opened:
            assert np.array_equal(np.asarray(opened), picture(index))


def test_several_images_are_encoded_in_parallel_on_their_own_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responding, "MAX_ENCODERS", 2)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    both = threading.Barrier(2, timeout=60)
    threads: list[str] = []
    real = responding.encode

    def encode_together(*arguments: Any) -> bytes:
        threads.append(threading.current_thread().name)
        both.wait()
        return real(*arguments)

    monkeypatch.setattr(responding, "encode", encode_together)
    assert len(respond(parse(num_images=4), tmp_path)["images"]) == 4
    assert {name.rpartition("_")[0] for name in threads} == {"encoder"}
    assert len(set(threads)) == 2


def test_parameters_hold_every_resolved_value(tmp_path: Path) -> None:
    response = respond(parse(seed=7, scheduler="K_EULER", num_inference_steps=3, negative_prompt="fog"), tmp_path)
    assert response["parameters"] == {
        "prompt": "a cat", "negative_prompt": "fog", "steps": 3, "scale": 7.5, "do_scale": True, "seed": 7,
        "sampler": "euler", "schedule": "default", "width": 72, "height": 64, "model": "tiny",
        "num_images": 1, "prompt_syntax": "a1111", "clip_skip": 1, "output_format": "png",
        "eta": None, "s_churn": None, "s_tmin": None, "s_tmax": None, "s_noise": None, "rng": "cpu",
        "eta_noise_seed_delta": 0, "variation_seed": None, "variation_strength": 0.0,
        "output_quality": 95, "hires": None, "tiling": False,
        "guidance_rescale": 0.0, "pag_scale": 0.0, "freeu": None, "guidance_start": 0.0, "guidance_end": 1.0,
        "deepcache": 1, "tome_ratio": 0.0, "loras": [], "controlnets": [], "ip_adapters": [], "vae": None,
    }  # fmt: skip
    again = parse_request(response["parameters"], LIMITS)
    assert (again.sampler_name, again.request.seed, again.request.width) == ("euler", 7, 72)


@pytest.mark.parametrize(("output_format", "within"), [("png", 0), ("jpeg", 40), ("webp", 60)])
def test_each_output_format_is_written(output_format: str, within: int) -> None:
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    opened = Image.open(io.BytesIO(encode(smooth, output_format, "text")))
    assert opened.format == output_format.upper()
    assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - smooth).max() <= within


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_quality_is_the_jobs(output_format: str, tmp_path: Path) -> None:
    """The default is 95; a lower quality makes a smaller file that is further from the image."""
    files = {
        quality: Path(respond(parse(seed=7, output_format=output_format, **fields), tmp_path)["outputs"][0])
        for quality, fields in {30: {"output_quality": 30}, 95: {}, 100: {"output_quality": 100}}.items()
    }
    sizes = [files[quality].stat().st_size for quality in (30, 95, 100)]
    assert sizes == sorted(set(sizes))
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert encode(noise, output_format, "", 95) == encode(noise, output_format, "")


def test_a_png_carries_its_parameters_as_the_web_ui_writes_them(tmp_path: Path) -> None:
    job = parse(prompt="a cat, лес 🐈\non a mat", negative_prompt="fog", seed=5, num_images=2, steps=4)
    second = respond(job, tmp_path)["outputs"][1]
    with Image.open(second) as opened:
        text = opened.info["parameters"]
    assert text == (
        "a cat, лес 🐈\non a mat\nNegative prompt: fog\n"
        "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 6, Size: 72x64, "
        "Model hash: 0123456789, Model: tiny, RNG: CPU, Version: sd15-worker 0.1.0"
    )


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["a cat, лес 🐈\non a mat", "Negative prompt: fog"])
def test_every_format_carries_parameters_that_give_the_job_back(
    tmp_path: Path, output_format: str, prompt: str
) -> None:
    job = parse(prompt=prompt, seed=5, num_images=2, steps=4, output_format=output_format, sampler="heun_karras")
    response = respond(job, tmp_path)
    text = generation_text(Path(response["outputs"][1]).read_bytes())
    again = parse_request({"parameters": text}, LIMITS)
    assert again.request == replace(job.request, seed=6, num_images=1)
    assert response["warnings"] == ["a note"]
    with Image.open(response["outputs"][1]) as opened:
        assert opened.format == output_format.upper()


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_sd_parsers_reads_every_file(tmp_path: Path, output_format: str) -> None:
    job = parse(prompt="a cat, лес\non: a mat", negative_prompt="fog", seed=5, steps=4, output_format=output_format)
    (stored,) = respond(job, tmp_path)["outputs"]
    found = ParserManager().parse(stored)
    (sampler,) = found.samplers
    assert [prompt.value for prompt in sampler.prompts] == ["a cat, лес\non: a mat"]
    assert [prompt.value for prompt in sampler.negative_prompts] == ["fog"]
    assert (sampler.name, sampler.model.name, sampler.model.hash) == ("DPM++ 2M", "tiny", "0123456789")
    assert sampler.parameters == {"cfg_scale": "7.5", "seed": "5", "steps": "4", "scheduler": "Karras"}
    assert found.metadata["RNG"] == "CPU"


def test_a_text_that_no_jpeg_can_carry_is_said(tmp_path: Path) -> None:
    # The format cannot hold this prompt, so the exact fields repeat it.
    fields = {"prompt": "Negative prompt: " + "🐈" * 7_900, "negative_prompt": "🐕" * 7_900, "seed": 5}
    response = respond(parse(output_format="jpeg", **fields), tmp_path / "jpeg")
    assert response["warnings"] == ["a note", "the parameters are too long for a JPEG to carry them"]
    with Image.open(response["outputs"][0]) as opened:
        assert dict(opened.getexif()) == {}
    webp = respond(parse(output_format="webp", **fields), tmp_path / "webp")
    assert webp["warnings"] == ["a note"]
    text = generation_text(Path(webp["outputs"][0]).read_bytes())
    assert parse_request({"parameters": text}, LIMITS).request.prompt == fields["prompt"]


def test_a_response_over_the_limit_names_the_stored_images(tmp_path: Path) -> None:
    size = len(json.dumps({"output": respond(parse(seed=7), tmp_path / "first")}))
    with pytest.raises(PayloadTooLarge) as caught:
        respond(parse(seed=7), tmp_path / "second", max_bytes=size // 2)
    (stored,) = (tmp_path / "second").iterdir()
    assert str(stored) in str(caught.value)
    assert f"{size // 2:,}" in str(caught.value)
    assert caught.value.code == "payload_too_large"


def test_a_response_that_is_not_json_is_never_sent(tmp_path: Path) -> None:
    job = parse()
    result = Result([picture()], [0], {"queue": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        asyncio.run(success(job, result, MODEL, tmp_path, 10_000_000, new_encoders()))


def test_a_failure_is_plain_strings() -> None:
    response = failure(InvalidRequest("steps: \ud800 is bad"), "u")
    assert response == {
        "error": "invalid_input: steps: \\ud800 is bad", "error_code": "invalid_input", "message": "error", "uid": "u",
    }  # fmt: skip
    json.dumps(response, ensure_ascii=False).encode("utf-8")


def test_a_printed_response_leaves_out_images_and_prompts(tmp_path: Path) -> None:
    response = respond(parse(seed=7), tmp_path)
    assert response["image"] not in f"{response} {[response]!r}"
    assert "a cat" not in repr(response)
    assert response["outputs"][0] in repr(response)
