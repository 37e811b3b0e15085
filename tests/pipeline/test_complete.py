import numpy as np
import pytest
from PIL import Image

from sd_core.checks import check
from sd_core.errors import InvalidRequest
from sd_core.fields import Record
from sd_core.groups import MAX_SEED
from sd_core.pipeline.complete import complete, find_model, with_image
from sd_core.request import Request

RECORD = Record.of(Request)


def completed(**fields: object) -> Request:
    return complete(Request, check(RECORD, {"prompt": "a cat", **fields}).values, "tiny", 64)


def test_nothing_is_left_open() -> None:
    request = completed()
    assert request == Request("a cat", seed=request.seed, width=64, height=64, model="tiny")
    assert completed(width=128).width == 128
    assert completed(width=128).height == 64


@pytest.mark.parametrize("seed", [None, -1])
def test_an_open_seed_is_random(seed: int | None) -> None:
    assert len({completed(seed=seed).seed for _ in range(8)}) > 1


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_a_given_seed_stays(seed: int) -> None:
    assert completed(seed=seed).seed == seed


def test_a_sampler_and_its_schedule_are_resolved_to_their_own_names() -> None:
    request = completed(sampler="Euler a", schedule="Karras")
    assert (request.sampler, request.schedule) == ("euler_a", "karras")
    with pytest.raises(InvalidRequest, match="sampler is 'eulr'"):
        completed(sampler="eulr")


def test_an_image_brings_its_size_within_the_pixels_of_all_images() -> None:
    request = with_image(completed(num_images=2), Image.new("RGB", (256, 128)), None, None, 2 * 128 * 64)
    assert (request.width, request.height) == (128, 64)
    assert request.image is not None
    assert (request.image.shape, request.image.dtype) == ((64, 128, 3), np.uint8)


KNOWN = ("first", "Second", "second", "v1.5", "a [b]")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "first"),
        ("second", "second"),
        ("Second", "Second"),
        ("FIRST", "first"),
        ("v1.5", "v1.5"),
        ("v1.5.safetensors", "v1.5"),
        ("v1.5.safetensors [6ce0161689]", "v1.5"),
        ("first [6ce0161689]", "first"),
        ("a [b]", "a [b]"),
    ],
)
def test_a_model_is_found_by_the_ways_of_writing_its_name(name: str | None, expected: str) -> None:
    assert find_model(name, KNOWN) == expected


@pytest.mark.parametrize("name", ["frist", "../first", "/first", "first/", "first\0", "x" * 256, "[]"])
def test_an_unknown_model_is_refused_with_what_is_loaded(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not loaded here") as caught:
        find_model(name, KNOWN)
    assert "loaded: first, Second" in str(caught.value)
    with pytest.raises(InvalidRequest) as caught:
        find_model(name, [f"model-{index}" for index in range(1000)])
    assert len(str(caught.value)) < 200


def test_an_image_leaves_room_for_its_second_pass() -> None:
    """The image's own size is brought under the limit that holds after the second pass."""
    image, limit = Image.new("RGB", (512, 256)), 512 * 256
    request = with_image(completed(image=image, hires={"scale": 2}), image, None, None, limit)
    assert (request.width, request.height) == (256, 128)
    with pytest.raises(InvalidRequest, match="hires: width x height x num_images: 1024 x 512 x 1 is 524,288 pixels"):
        with_image(completed(image=image, hires={}), image, 512, 256, limit)
    fixed = completed(image=image, hires={"width": 512, "height": 256})
    assert with_image(fixed, image, None, None, limit).width == 512


def test_hires_beyond_a_side_is_refused_without_an_image() -> None:
    with pytest.raises(InvalidRequest, match="hires: 1024x64 would become 4096x256"):
        completed(width=1024, hires={"scale": 4})
