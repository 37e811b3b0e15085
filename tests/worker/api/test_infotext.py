import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd_core.fields import Record
from sd_core.request import Request
from worker import VERSION
from worker.api.infotext import infotext
from worker.api.job import Job, Limits, parse_request

MODEL = {"name": "tiny", "sha256": "0123456789abcdef" * 4}


LIMITS = Limits(2**22, {"tiny": 64, "a, b: c": 64})


def parse(**fields: Any) -> Job:
    return parse_request({"prompt": "a cat", "width": 72, **fields}, LIMITS)


def test_the_text_has_the_order_and_labels_of_the_web_ui() -> None:
    assert infotext(parse(negative_prompt="fog", steps=4), 6, MODEL) == (
        "a cat\nNegative prompt: fog\n"
        "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 6, Size: 72x64, "
        "Model hash: 0123456789, Model: tiny, RNG: CPU, Version: sd15-worker 0.1.0"
    )


def test_strength_is_written_with_an_image_and_an_unknown_hash_is_left_out() -> None:
    job = parse(image="aGk=", strength=0.5, do_scale=False, sampler="euler_a", model="a, b: c")
    job = replace(job, request=replace(job.request, image=np.zeros((64, 72, 3), np.uint8)))
    assert infotext(job, 3, {"name": "a, b: c", "sha256": None}) == (
        "a cat\nSteps: 25, Sampler: Euler a, Schedule type: Uniform, CFG scale: 1, Seed: 3, Size: 72x64, "
        'Model: "a, b: c", Denoising strength: 0.5, RNG: CPU, Version: sd15-worker 0.1.0'
    )


def test_how_prompts_are_read_is_written_where_it_is_not_the_web_uis_default() -> None:
    text = infotext(parse(prompt_syntax="comfy", clip_skip=2), 3, MODEL)
    assert ", Prompt syntax: comfy, Clip skip: 2" in text
    assert "Prompt syntax" not in infotext(parse(), 3, MODEL)
    assert "Clip skip" not in infotext(parse(), 3, MODEL)


def test_a_prompt_is_written_as_it_is() -> None:
    prompt = r"(a:1.3) [b|c] \(d\) BREAK [e:f:0.5] AND g :0.8"
    assert infotext(parse(prompt=prompt), 3, MODEL).startswith(prompt + "\nSteps: ")


def test_strength_is_not_written_without_an_image() -> None:
    assert "Denoising" not in infotext(parse(strength=0.5), 3, MODEL)


IMAGE, MASK = np.zeros((64, 72, 3), np.uint8), np.zeros((64, 72), np.uint8)


def inpainted(**fields: Any) -> str:
    """What the text of an inpainted image says behind its strength."""
    job = parse(image="aGk=", mask="aGk=", **fields)
    job = replace(job, request=replace(job.request, image=IMAGE, mask=MASK))
    return infotext(job, 3, MODEL).partition("Denoising strength: 0.8")[2].partition(", RNG: CPU")[0]


def test_inpainting_is_written_as_the_web_ui_does() -> None:
    assert inpainted() == ", Mask blur: 4"
    assert inpainted(
        mask_blur=8, mask_invert=True, inpaint_fill="latent_noise", inpaint_area="masked", inpaint_padding=16
    ) == (
        ", Mask blur: 8, Mask mode: Inpaint not masked, Masked content: latent noise, Inpaint area: Only masked, "
        "Masked area padding: 16"
    )
    assert inpainted(resize_mode="crop", mask_blur_x=2, outpaint={"left": 64, "top": 8}) == (
        ", Resize mode: crop, Mask blur: 4, Mask blur X: 2, Outpaint: left 64 top 8"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_invert", True), ("inpaint_fill", "latent_nothing"), ("inpaint_fill", "fill"),
        ("inpaint_area", "masked"), ("outpaint", {"left": 64, "bottom": 8}),
    ],
)  # fmt: skip
def test_inpainting_is_read_from_the_text_that_it_is_written_as(field: str, value: Any) -> None:
    described = Record.of(Request)[field]
    request = replace(parse(image="aGk=", **{field: value}).request, image=IMAGE)
    assert described.to_text is not None and described.from_text is not None
    text = described.to_text(request)
    assert text is not None
    assert described.from_text(text) == {field: value}


@pytest.mark.parametrize("text", ["left", "left x", "64 left 8"])
def test_a_border_that_cannot_be_read_is_an_error(text: str) -> None:
    read = Record.of(Request)["outpaint"].from_text
    assert read is not None
    with pytest.raises(ValueError):
        read(text)


def test_a_size_is_read_from_the_text_that_it_is_written_as() -> None:
    size = Record.of(Request)["width"]
    assert size.to_text is not None
    assert size.from_text is not None
    request = Request("", seed=0, width=72, height=128)
    assert size.from_text(size.to_text(request)) == {"width": 72, "height": 128}
    for text in ("72", "72x", "axb", "1x2x3"):
        with pytest.raises(ValueError):
            size.from_text(text)


def test_labels_that_no_field_has_are_written_and_change_no_job() -> None:
    job = parse(seed=6)
    text = infotext(job, 6, MODEL, labels={"TI hashes": "fog: 0123, rain: 4567"})
    assert 'RNG: CPU, TI hashes: "fog: 0123, rain: 4567", Version: ' in text
    again = parse_request({"parameters": text}, LIMITS)
    assert (again.request, again.warnings) == (job.request, ())


def test_a_float_is_written_as_exactly_as_it_is() -> None:
    assert ", CFG scale: 7, " in infotext(parse(scale=7.0), 1, MODEL)
    assert ", CFG scale: 7.123456789, " in infotext(parse(scale=7.123456789), 1, MODEL)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
