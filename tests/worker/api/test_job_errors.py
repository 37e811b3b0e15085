"""What is wrong with a job, and the words for it."""

from typing import Any

import pytest

from sd_core.errors import InvalidRequest
from worker.api.job import JOB, Limits, parse_request

LIMITS = Limits(max_pixels=2048 * 2048, native_sizes={"tiny": 512})


def problem(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({"prompt": "a cat", **fields}, LIMITS)
    return str(caught.value)


BAD = [
    ("prompt", 5, "5 is not a string"),
    ("prompt", None, "null is not a string"),
    ("prompt", "x" * 100_000, "100,000 characters, at most 8,000"),
    ("prompt", "a\0b", "NUL character at position 1"),
    ("prompt", "\ud800", "not valid Unicode"),
    ("negative_prompt", ["x"], "a list is not a string"),
    ("negative_prompt", "x" * 8_001, "8,001 characters, at most 8,000"),
    ("negative_prompt", "\0", "NUL character at position 0"),
    ("uid", "", "is empty"),
    ("uid", "x" * 129, "129 characters, at most 128"),
    ("uid", 7, "7 is not a string"),
    ("uid", "\udcff", "not valid Unicode"),
    ("steps", 0, "0 is not a whole number from 1 to 150"),
    ("steps", 151, "151 is not a whole number from 1 to 150"),
    ("steps", "25", "'25' is not a whole number from 1 to 150"),
    ("steps", 25.5, "25.5 is not a whole number from 1 to 150"),
    ("steps", 151.0, "151 is not a whole number from 1 to 150"),
    ("steps", float("nan"), "nan is not a whole number"),
    ("steps", float("inf"), "inf is not a whole number"),
    ("steps", 1e300, "a number of more than 40 digits is not a whole number"),
    ("steps", True, "true is not a whole number"),
    ("steps", None, "null is not a whole number"),
    ("steps", 10**5000, "a number of more than 40 digits is not a whole number from 1 to 150"),
    ("scale", -0.1, "-0.1 is not a number from 0 to 50"),
    ("scale", 50.5, "from 0 to 50"),
    ("scale", float("nan"), "nan is not a number from 0 to 50"),
    ("scale", float("inf"), "inf is not a number from 0 to 50"),
    ("scale", 10**400, "more than 40 digits is not a number from 0 to 50"),
    ("scale", True, "true is not a number"),
    ("scale", "7.5", "'7.5' is not a number"),
    ("do_scale", 1, "1 is not true or false"),
    ("do_scale", "true", "'true' is not true or false"),
    ("do_scale", None, "null is not true or false"),
    ("seed", -2, "-2 is not a whole number from -1 to 9223372036854775807"),
    ("seed", 2**63, "9223372036854775808 is not a whole number from -1 to 9223372036854775807"),
    ("seed", 1.5, "1.5 is not a whole number"),
    ("sampler", "eulr", "did you mean 'euler'"),
    ("sampler", 3, "3 is not a string"),
    ("sampler", "", "is empty"),
    ("sampler", "e" * 1_000_000, "1,000,000 characters, at most 100"),
    ("schedule", "karas", "did you mean 'karras'"),
    ("width", 100, "100 is not a multiple of 8; the nearest are 96 and 104"),
    ("width", 56, "56 is not a whole number from 64 to 2048"),
    ("height", 2056, "2056 is not a whole number from 64 to 2048"),
    ("height", 512.5, "512.5 is not a whole number"),
    ("model", "other", "'other' is not here; there are: tiny"),
    ("model", "tiny2", "did you mean 'tiny'"),
    ("model", "", "is empty"),
    ("model", 3, "3 is not a string"),
    ("num_images", 0, "0 is not a whole number from 1 to 16"),
    ("num_images", 17, "17 is not a whole number from 1 to 16"),
    ("vae", "", "is empty"),
    ("loras", {"name": "x"}, "an object is not a list of objects"),
    ("loras", [{"name": "x"}] * 9, "has 9 entries, at most 8 are allowed"),
    ("loras", ["x"], "loras[0]: 'x' is not an object of fields"),
    ("loras", [{"name": "x"}, {"name": "y", "weight": 5}], "loras[1].weight: 5 is not a number from -4 to 4"),
    ("loras", [{"weight": 1}], "loras[0].name: is required"),
    ("controlnets", [{"model": "x"}], "controlnets[0].image: is required, because the job has no image"),
    ("controlnets", [{"image": "aGk="}], "controlnets[0].model: is required"),
    ("controlnets", [{"model": "x", "image": ""}], "controlnets[0].image: is empty"),
    ("controlnets", [{"model": "x", "image": "aGk="}] * 4, "has 4 entries, at most 3 are allowed"),
    (
        "controlnets",
        [{"model": "x", "image": "aGk=", "mode": 3}],
        "controlnets[0].mode: 3 is not one of balanced, prompt",
    ),
    (
        "controlnets",
        [{"model": "x", "image": "aGk=", "preprocessor": "inpaint"}],
        "controlnets[0].preprocessor: inpaint needs a mask or outpaint",
    ),
    ("ip_adapters", [{"model": "x"}], "ip_adapters[0].image: is required, because the job has"),
    ("ip_adapters", [{"image": "aGk="}], "ip_adapters[0].model: is required"),
    (
        "ip_adapters",
        [{"model": "x", "image": "aGk=", "weight": 2.5}],
        "ip_adapters[0].weight: 2.5 is not a number",
    ),
    ("ip_adapters", [{"model": "x", "image": "aGk=", "startt": 0}], "did you mean ip_adapters[0].start?"),
    ("ip_adapters", [{"model": "x", "image": "aGk="}] * 3, "has 3 entries, at most 2 are allowed"),
    ("prompt_syntax", "A1111", "'A1111' is not one of a1111, comfy, plain"),
    ("prompt_syntax", None, "null is not one of a1111, comfy, plain"),
    ("clip_skip", 0, "0 is not a whole number from 1 to 12"),
    ("clip_skip", 13, "13 is not a whole number from 1 to 12"),
    ("image", 5, "5 is not a string"),
    ("image", "", "is empty"),
    ("strength", 0, "0 is not a number over 0 and up to 1"),
    ("strength", 1.01, "1.01 is not a number over 0 and up to 1"),
    ("eta", 1.1, "1.1 is not a number from 0 to 1"),
    ("eta", float("nan"), "nan is not a number from 0 to 1"),
    ("eta", 0.5, "eta: sampler DPM++ 2M has no such option; its options: none"),
    ("s_churn", -1, "-1 is not a number from 0 to 1000"),
    ("s_churn", 1.0, "s_churn: sampler DPM++ 2M has no such option"),
    ("s_tmin", "0", "'0' is not a number from 0"),
    ("s_tmax", float("inf"), "inf is not a number from 0"),
    ("s_noise", 11, "11 is not a number from 0 to 10"),
    ("rng", "gpu", "'gpu' is not one of cpu, nv"),
    ("rng", None, "null is not one of cpu, nv"),
    ("eta_noise_seed_delta", -1, "-1 is not a whole number from 0"),
    ("eta_noise_seed_delta", 2**63, "is not a whole number from 0 to 9223372036854775807"),
    ("variation_seed", -2, "-2 is not a whole number from -1"),
    ("variation_strength", 1.1, "1.1 is not a number from 0 to 1"),
    ("strength_steps", "all", "'all' is not one of scaled, exact"),
    ("hires", 2, "2 is not an object of fields"),
    ("hires", {"scale": 4.5}, "hires.scale: 4.5 is not a number from 1 to 4"),
    ("hires", {"width": 100}, "hires.width: 100 is not a multiple of 8"),
    ("hires", {"steps": 0}, "hires.steps: 0 is not a whole number from 1 to 150"),
    ("hires", {"scal": 2}, "hires.scal: unknown field, did you mean hires.scale?"),
    ("hires", {"sampler": "eulr"}, "did you mean 'euler"),
    ("hires", {"schedule": "karas"}, "did you mean 'karras'"),
    ("hires", {"strength": 0}, "hires.strength: 0 is not a number over 0 and up to 1"),
    ("tiling", 1, "1 is not true or false"),
    ("guidance_rescale", 1.5, "1.5 is not a number from 0 to 1"),
    ("pag_scale", -1, "-1 is not a number from 0 to 20"),
    ("freeu", True, "true is not an object of fields"),
    ("freeu", {"b1": -1}, "freeu.b1: -1 is not a number from 0 to 4"),
    ("guidance_start", 1.01, "1.01 is not a number from 0 to 1"),
    ("guidance_end", -0.5, "-0.5 is not a number from 0 to 1"),
    ("deepcache", 6, "6 is not a whole number from 1 to 5"),
    ("tome_ratio", 0.8, "0.8 is not a number from 0 to 0.75"),
    ("image_scale", -0.5, "-0.5 is not a number from 0 to 20"),
    ("output_quality", 0, "0 is not a whole number from 1 to 100"),
    ("parameters", 5, "5 is not a text, an object or a picture"),
    ("parameters", "x" * 150_001, "150,001 characters, at most 150,000"),
    ("parameters", "x" * 8_001, "prompt has 8,001 characters, at most 8,000"),
    ("parameters", {"steps": 0}, "parameters.steps: 0 is not a whole number from 1 to 150"),
    ("parameters", {"stepz": 1}, "parameters.stepz: unknown field, did you mean parameters.steps?"),
    ("parameters", {"parameters": "x"}, "parameters.parameters: parameters hold no parameters"),
    ("resize_mode", 4, "4 is not one of stretch, crop, fill, latent"),
    ("resize_mode", True, "true is not one of stretch, crop, fill, latent"),
    ("mask", "aGk=", "mask: needs an image"),
    ("mask", 5, "5 is not a string"),
    ("mask_blur", 65, "65 is not a whole number from 0 to 64"),
    ("mask_blur_x", -1, "-1 is not a whole number from 0 to 64"),
    ("mask_blur_y", "4", "'4' is not a whole number from 0 to 64"),
    ("mask_invert", 2, "2 is not true or false"),
    ("inpaint_fill", 4, "4 is not one of fill, original, latent_noise, latent_nothing"),
    ("inpaint_area", "face", "'face' is not one of whole, masked"),
    ("inpaint_padding", 513, "513 is not a whole number from 0 to 512"),
    ("outpaint", 64, "64 is not an object of fields"),
    ("outpaint", {"left": 63}, "outpaint.left: 63 is not a multiple of 8"),
    ("outpaint", {"left": 64}, "outpaint: needs an image"),
    ("outpaint", {"lift": 64}, "outpaint.lift: unknown field, did you mean outpaint.left?"),
    ("output_format", "gif", "'gif' is not one of png, jpeg, webp"),
    ("output_format", None, "null is not one of png, jpeg, webp"),
    ("preview", 1, "1 is not true or false"),
    ("preview", None, "null is not true or false"),
]


@pytest.mark.parametrize(("field", "value", "reason"), BAD, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(BAD)])
def test_a_bad_value_is_refused_by_name_value_and_limit(field: str, value: Any, reason: str) -> None:
    message = problem(**{field: value})
    assert field in message
    assert reason in message
    assert len(message) < 500


def test_every_field_has_a_bad_value_in_these_tests() -> None:
    assert {field for field, _, _ in BAD} == {field.name for field in JOB}


def test_every_bad_field_is_named_in_one_error() -> None:
    message = problem(
        num_inference_steps=500, width=100, sampler="nope", stepz=3, mask="x", negative_prompt="\0", cfg_scale="x"
    )
    for part in ("num_inference_steps: 500", "width: 100", "sampler is 'nope'", "stepz", "mask", "cfg_scale: 'x'"):
        assert part in message
    assert "negative_prompt: holds a NUL" in message


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("stepz", "steps"), ("Prompt", "prompt"), ("num_image", "num_images"), ("cfgscale", "cfg_scale")],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    assert problem(**{name: 1}) == f"{name}: unknown field, did you mean {nearest}?"


def test_an_unknown_field_near_nothing_is_refused_too() -> None:
    assert problem(qqqqqq=1) == "qqqqqq: unknown field"


@pytest.mark.parametrize("name", ["x" * 1_000_000, "\ud800", "two words", "", "größe"])
def test_a_hostile_field_name_is_quoted_short_and_in_ascii(name: str) -> None:
    message = problem(**{name: 1})
    assert message.isascii()
    assert len(message) < 200


def test_a_million_unknown_fields_make_a_short_error() -> None:
    message = problem(**{f"zz{index}": 1 for index in range(100_000)})
    assert "and 99,970 more" in message
    assert len(message) < 5_000


def test_field_names_are_strings() -> None:
    with pytest.raises(InvalidRequest, match="3: field names are strings"):
        parse_request({"prompt": "x", 3: 4}, LIMITS)


def test_no_error_quotes_a_prompt_or_an_image() -> None:
    secret = "s3cret"
    message = problem(
        prompt=secret + "\0",
        negative_prompt=secret * 8_000,
        image=secret,
        mask=secret,
        init_image=secret + "x",
        steps=0,
    )
    assert secret not in message
