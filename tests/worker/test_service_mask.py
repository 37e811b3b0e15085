"""Masks and borders in a job: how they are decoded, what is said of them, and which limits hold."""

import asyncio
import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worker.service import Service, run_job


def run(service: Service, payload: Any) -> dict[str, Any]:
    return asyncio.run(run_job({"id": "job-1", "input": payload}, service))


def data_uri(width: int, height: int) -> str:
    return "data:image/png;base64," + file_of(Image.new("RGB", (width, height), "red"))


def file_of(image: Image.Image, file_format: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return base64.b64encode(file.getvalue()).decode()


def test_a_mask_is_decoded_as_images_are(service: Service, engine: Any) -> None:
    mask = Image.new("L", (128, 64))
    mask.paste(255, (0, 0, 40, 64))
    response = run(service, {"prompt": "x", "image": data_uri(128, 64), "mask_image": file_of(mask)})
    (request,) = engine.requests
    assert np.array_equal(request.mask, np.asarray(mask)) and request.is_masked
    assert response["parameters"]["mask_blur"] == 4 and "mask" not in response["parameters"]
    with Image.open(response["outputs"][0]) as stored:
        assert "Mask blur: 4" in stored.info["parameters"]


def test_transparent_pixels_of_a_mask_are_black(service: Service, engine: Any) -> None:
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 32, 64))
    run(service, {"prompt": "x", "image": data_uri(64, 64), "mask": file_of(mask)})
    assert (engine.requests[0].mask[:, :32] == 255).all() and not engine.requests[0].mask[:, 32:].any()
    run(service, {"prompt": "x", "image": file_of(mask)})
    assert (engine.requests[1].image == 255).all(), "those of an image are white"


def test_what_is_odd_about_a_mask_is_said_of_the_mask(service: Service, engine: Any) -> None:
    frames = [Image.new("L", (32, 16), level) for level in (255, 0)]
    animated = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    response = run(service, {"prompt": "x", "image": data_uri(64, 64), "mask": animated})
    assert response["warnings"][:2] == [
        "mask is animated: its first frame was used",
        "mask was resized from 32 x 16 pixels to 64 x 64, the image's size",
    ]
    assert (engine.requests[0].mask == 255).all()
    black = run(service, {"prompt": "x", "image": data_uri(64, 64), "mask": file_of(Image.new("1", (64, 64)))})
    assert "mask selects no pixel to repaint: the answer is the image as it was sent" in black["warnings"]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (base64.b64encode(b"no image").decode(), "invalid_image: mask: 8 bytes are not an image"),
        ("not base64!!", "invalid_image: mask: "),
        ("http://127.0.0.1:9/x.png", "invalid_image: mask: "),
    ],
)
def test_a_bad_mask_is_named(service: Service, engine: Any, mask: str, reason: str) -> None:
    response = run(service, {"prompt": "x", "image": data_uri(64, 64), "mask": mask})
    assert response["error"].startswith(reason)
    assert not engine.requests


def test_a_mask_without_an_image_is_refused_before_it_is_fetched(service: Service) -> None:
    response = run(service, {"prompt": "x", "mask_url": "http://127.0.0.1:9/x.png"})
    assert response["error"] == "invalid_input: mask_url: needs an image"


def test_a_border_over_the_pixel_limit_is_refused(make_service: Callable[..., Service]) -> None:
    service = make_service(SD_MAX_PIXELS=str(128 * 128))
    job = {"prompt": "x", "image": data_uri(128, 64), "outpaint": {"right": 256}}
    assert run(service, job)["error"].startswith("invalid_input: outpaint: the image grows to 384x64")
    assert run(service, {**job, "outpaint": {"right": 128}})["message"] == "success"


def test_a_part_is_repainted_within_the_pixel_limit(make_service: Callable[..., Service], engine: Any) -> None:
    service = make_service(SD_MAX_PIXELS=str(64 * 64))
    job = {"prompt": "x", "image": data_uri(512, 256), "mask": data_uri(512, 256), "only_masked": True}
    assert run(service, job)["message"] == "success"
    assert engine.requests[0].image.shape == (256, 512, 3) and engine.requests[0].generated_size == (64, 64)
    assert "width x height x num_images: 64 x 64 x 2" in run(service, {**job, "num_images": 2})["error"]
