import numpy as np
import pytest
from PIL import Image

from sd_core.checks import check
from sd_core.errors import InvalidRequest
from sd_core.fields import Record
from sd_core.pipeline.complete import complete, find_model, with_image
from sd_core.request import MAX_SEED, Request

RECORD = Record.of(Request)


def completed(**fields: object) -> Request:
    return complete(Request, check(RECORD, {"prompt": "a cat", **fields}).values, "tiny", 64)


def test_every_field_is_filled_in() -> None:
    request = completed()
    assert request == Request("a cat", seed=request.seed, width=64, height=64, model="tiny")
    assert completed(width=128).width == 128
    assert completed(width=128).height == 64


@pytest.mark.parametrize("seed", [None, -1])
def test_a_missing_seed_is_random(seed: int | None) -> None:
    assert len({completed(seed=seed).seed for _ in range(8)}) > 1


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_a_given_seed_is_kept(seed: int) -> None:
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
