import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sd_core.checks import check
from sd_core.errors import InvalidRequest
from sd_core.fields import Record
from sd_core.groups import MAX_SEED
from sd_core.pipeline.complete import complete, find_model, implied, unusable, with_image, without_effect
from sd_core.request import Request

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
    request, warnings = with_image(
        completed(num_images=2), Image.new("RGB", (256, 128)), None, None, None, 2 * 128 * 64
    )
    assert not warnings
    assert (request.width, request.height) == (128, 64)
    assert request.image is not None
    assert (request.image.shape, request.image.dtype) == ((64, 128, 3), np.uint8)


def halves(width: int, height: int) -> Image.Image:
    """The left half white, the right half black."""
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (0, 0, width // 2, height))
    return image


BLACK = Image.new("L", (96, 64))
PLENTY = 2048 * 2048


def with_mask(mask: Image.Image | None, max_pixels: int = PLENTY, **fields: Any) -> tuple[Request, list[str]]:
    request = completed(**fields)
    return with_image(
        request, Image.new("RGB", (96, 64), "red"), mask, fields.get("width"), fields.get("height"), max_pixels
    )


def test_a_mask_has_the_images_size() -> None:
    request, warnings = with_mask(halves(96, 64), width=192, height=128)
    assert request.mask is not None and not warnings
    assert (request.mask.shape, request.mask.dtype) == ((128, 192), np.uint8)
    assert (request.mask[:, :95] == 255).all() and not request.mask[:, 97:].any()
    assert request.is_masked and request.generated_size == (192, 128)


def test_a_mask_of_another_size_is_resized_and_that_is_said() -> None:
    request, warnings = with_mask(halves(48, 16))
    assert request.mask is not None and request.mask.shape == (64, 96)
    assert (request.mask[:, :47] == 255).all() and not request.mask[:, 50:].any()
    assert warnings == ["mask was resized from 48 x 16 pixels to 96 x 64, the image's size"]


@pytest.mark.parametrize(("mask", "invert"), [(BLACK, False), (Image.new("L", (96, 64), 255), True)])
def test_a_mask_that_keeps_everything_is_said(mask: Image.Image, invert: bool) -> None:
    _, warnings = with_mask(mask, mask_invert=invert)
    assert warnings == ["mask selects no pixel to repaint: the answer is the image as it was sent"]
    assert with_mask(mask, mask_invert=not invert)[1] == []
    assert with_mask(mask, mask_invert=invert, outpaint={"left": 8})[1] == []


def test_a_part_is_cut_from_the_image_as_it_was_sent() -> None:
    request, _ = with_mask(halves(96, 64), inpaint_area="masked")
    assert request.image is not None and request.mask is not None
    assert (request.width, request.height) == (64, 64), "the model's native size"
    assert (request.image.shape, request.mask.shape) == ((64, 96, 3), (64, 96))
    assert with_mask(halves(96, 64), inpaint_area="masked", width=128)[0].width == 128


def test_the_area_of_a_job_without_a_mask_is_the_whole_image() -> None:
    request, _ = with_mask(None, inpaint_area="masked")
    assert (request.width, request.height) == (96, 64) and not request.is_masked


def test_a_part_is_put_back_into_a_bounded_number_of_pixels() -> None:
    large = Image.new("RGB", (4096, 4096))
    request = completed(inpaint_area="masked", num_images=2)
    assert with_image(request, large, BLACK, None, None, PLENTY)[0].image is not None
    request = completed(inpaint_area="masked", num_images=3)
    with pytest.raises(InvalidRequest, match=r"3 x 4096x4096.*50,331,648 pixels, over the limit of 33,554,432"):
        with_image(request, large, BLACK, None, None, PLENTY)


def test_a_border_comes_on_top_of_the_size() -> None:
    request, _ = with_mask(None, outpaint={"left": 32, "bottom": 8})
    assert (request.width, request.height) == (96, 64)
    assert request.generated_size == (128, 72) and request.is_masked


@pytest.mark.parametrize(
    ("fields", "max_pixels", "reason"),
    [
        ({"outpaint": {"left": 2000}}, PLENTY, "grows to 2096x64, 134,144 pixels"),
        ({"outpaint": {"top": 64}}, 96 * 64, "grows to 96x128, 12,288 pixels.*limit is 6,144"),
        ({"outpaint": {"top": 64}, "num_images": 2}, 96 * 128, "24,576 pixels with num_images"),
    ],
)
def test_a_border_must_fit_the_limits(fields: dict[str, Any], max_pixels: int, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        with_mask(None, max_pixels, **fields)


def test_a_border_of_nothing_is_none() -> None:
    request, _ = with_mask(None, outpaint={})
    assert request.outpaint is None and not request.is_masked


@pytest.mark.parametrize(("mode", "left"), [("stretch", 16), ("crop", 8), ("fill", 16), ("latent", 24)])
def test_an_image_and_its_mask_come_to_their_size_by_the_same_mode(mode: str, left: int) -> None:
    image = Image.new("RGB", (96, 64))
    image.paste((255, 255, 255), (0, 0, 24, 64))
    mask = image.copy()
    request, _ = with_image(completed(resize_mode=mode), image, mask, 64, 64, PLENTY)
    assert request.image is not None and request.mask is not None
    assert request.image.shape[:2] == request.mask.shape == ((64, 96) if mode == "latent" else (64, 64))
    assert (request.width, request.height) == (64, 64)
    assert abs(int((request.mask[32] > 127).sum()) - left) <= 1
    assert np.abs(request.image[..., 0].astype(int) - request.mask)[:, [0, 4, 32, -1]].max() <= 8


def warnings_of(**fields: Any) -> list[str]:
    return without_effect(RECORD, check(RECORD, {"prompt": "a cat", **fields}))


PICTURE = Image.new("RGB", (64, 64))


def test_what_does_nothing_without_a_mask_is_said() -> None:
    assert warnings_of(mask_blur=4, image=PICTURE) == [
        "mask_blur did nothing: it has no effect without mask or outpaint"
    ]
    assert warnings_of(resize_mode="crop") == ["resize_mode did nothing: it has no effect without image"]
    assert warnings_of(image=PICTURE, outpaint={}) == ["outpaint did nothing: it adds no pixel"]
    said = warnings_of(image=PICTURE, mask=PICTURE, inpaint_padding=8)
    assert said == ["inpaint_padding did nothing: it has no effect unless inpaint_area is masked"]
    assert warnings_of(image=PICTURE, mask=PICTURE, inpaint_padding=8, only_masked=True) == []
    assert warnings_of(image=PICTURE, mask=PICTURE, inpaint_padding=32) == [], "a response's parameters hold it"


def test_a_mask_and_a_border_need_an_image() -> None:
    def problems(**fields: Any) -> list[str]:
        return unusable(check(RECORD, {"prompt": "a cat", **fields}))

    assert problems(mask_image=PICTURE) == ["mask_image: needs an image"]
    assert problems(outpaint={"left": 8}) == ["outpaint: needs an image"]
    assert problems(mask=PICTURE, image=PICTURE, outpaint={"left": 8}) == []
    assert problems(image=PICTURE, outpaint={"left": 8}, resize_mode="latent") == [
        "resize_mode: latent cannot be used with outpaint"
    ]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("resize_mode", {"stretch": "stretch", 0: "stretch", 1: "crop", 2: "fill", 3.0: "latent"}),
        ("inpaint_fill", {0: "fill", 1: "original", 2: "latent_noise", "latent nothing": "latent_nothing"}),
        ("inpaint_area", {"masked": "masked", True: "masked", False: "whole", "Only masked": "masked"}),
        ("mask_invert", {0: False, 1: True}),
    ],
)
def test_other_tools_values_are_understood(field: str, values: dict[Any, Any]) -> None:
    for given, meant in values.items():
        checked = check(RECORD, {"prompt": "a cat", field: given})
        assert (checked.problems, checked.values[field]) == ([], meant)


def test_a_crop_padding_of_diffusers_asks_for_the_masked_area() -> None:
    def area(**fields: Any) -> Any:
        return implied(check(RECORD, {"prompt": "a cat", **fields}))["inpaint_area"]

    assert area(padding_mask_crop=8) == "masked"
    assert area(inpaint_full_res_padding=8) == "whole"
    assert area(padding_mask_crop=8, inpaint_area="whole") == "whole"


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
    with pytest.raises(InvalidRequest, match="is not here") as caught:
        find_model(name, KNOWN)
    assert re.search(r"[Tt]here are: first, Second, second, v1.5, a \[b\]$", str(caught.value))
    with pytest.raises(InvalidRequest) as caught:
        find_model(name, [f"model-{index}" for index in range(1000)])
    assert "model-998" not in str(caught.value) and str(caught.value).endswith(" and 990 more")


def test_an_image_leaves_room_for_its_second_pass() -> None:
    """The image's own size is brought under the limit that holds after the second pass."""
    image, limit = Image.new("RGB", (512, 256)), 512 * 256
    request, _ = with_image(completed(image=image, hires={"scale": 2}), image, None, None, None, limit)
    assert (request.width, request.height) == (256, 128)
    with pytest.raises(InvalidRequest, match="hires: width x height x num_images: 1024 x 512 x 1 is 524,288 pixels"):
        with_image(completed(image=image, hires={}), image, None, 512, 256, limit)
    fixed = completed(image=image, hires={"width": 512, "height": 256})
    assert with_image(fixed, image, None, None, None, limit)[0].width == 512


def test_hires_beyond_a_side_is_refused_without_an_image() -> None:
    with pytest.raises(InvalidRequest, match="hires: 1024x64 would become 4096x256"):
        completed(width=1024, hires={"scale": 4})
