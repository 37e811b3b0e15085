from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sd_core.fields import Record
from sd_core.request import Request
from worker.api.infotext import infotext
from worker.api.job import Job, Limits, parse_request

MODEL = {"name": "tiny", "sha256": "0123456789abcdef" * 4}


def parse(**fields: Any) -> Job:
    return parse_request({"prompt": "a cat", "width": 72, **fields}, Limits(2**22, {"tiny": 64, "a, b: c": 64}))


def test_the_text_has_the_order_and_labels_of_the_web_ui() -> None:
    assert infotext(parse(negative_prompt="fog", steps=4), 6, MODEL) == (
        "a cat\nNegative prompt: fog\n"
        "Steps: 4, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 6, Size: 72x64, "
        "Model hash: 0123456789, Model: tiny"
    )


def test_strength_is_written_with_an_image_and_an_unknown_hash_is_left_out() -> None:
    job = parse(image="aGk=", strength=0.5, do_scale=False, sampler="euler_a", model="a, b: c")
    job = replace(job, request=replace(job.request, image=np.zeros((64, 72, 3), np.uint8)))
    assert infotext(job, 3, {"name": "a, b: c", "sha256": None}) == (
        "a cat\nSteps: 25, Sampler: Euler a, CFG scale: 1, Seed: 3, Size: 72x64, "
        'Model: "a, b: c", Denoising strength: 0.5'
    )


def test_strength_is_not_written_without_an_image() -> None:
    assert "Denoising" not in infotext(parse(strength=0.5), 3, MODEL)


IMAGE, MASK = np.zeros((64, 72, 3), np.uint8), np.zeros((64, 72), np.uint8)


def inpainted(**fields: Any) -> str:
    """What the text of an inpainted image says behind its strength."""
    job = parse(image="aGk=", mask="aGk=", **fields)
    job = replace(job, request=replace(job.request, image=IMAGE, mask=MASK))
    return infotext(job, 3, MODEL).partition("Denoising strength: 0.8")[2]


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
