import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_core.errors import InvalidRequest
from sd_core.request import MAX_SEED, Request
from worker.api.fields import ALIASES, Fields
from worker.api.job import Limits, ParsedJob, parse_request, uid_of

LIMITS = Limits(max_pixels=2048 * 2048, native_size=512)


def parse(**fields: Any) -> ParsedJob:
    return parse_request({"prompt": "a cat", **fields}, LIMITS)


def problem(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return str(caught.value)


def test_the_defaults_are_the_documented_ones() -> None:
    job = parse()
    assert (job.steps, job.scale, job.do_scale, job.num_images, job.strength) == (25, 7.5, True, 1, 0.8)
    assert (job.sampler, job.schedule, job.sampler_name) == ("dpmpp_2m", "karras", "dpmpp_2m_karras")
    assert (job.width, job.height) == (512, 512)
    assert (job.negative_prompt, job.image, job.output_format, job.warnings) == ("", None, "png", ())
    assert not job.preview
    assert 0 <= job.seed < 2**32
    assert len(job.uid) == 8
    int(job.uid, 16)


def test_a_whole_job_arrives_in_the_engines_words() -> None:
    job = parse(
        prompt="a dog", negative_prompt="fog", uid="u 1", steps=7, scale=3, seed=5, sampler="euler", width=64,
        height=128, num_images=2, output_format="webp",
    )  # fmt: skip
    assert (job.uid, job.output_format) == ("u 1", "webp")
    assert job.request(64, 128) == Request(
        prompt="a dog", negative_prompt="fog", seed=5, width=64, height=128, steps=7, guidance_scale=3.0,
        sampler="euler", schedule="default", num_images=2,
    )  # fmt: skip


def test_a_preview_is_drawn_for_who_asks() -> None:
    assert parse(preview=True).preview


def test_without_do_scale_there_is_no_guidance() -> None:
    job = parse(do_scale=False)
    assert job.request(64, 64).guidance_scale == 1.0


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_of_null_or_minus_one_is_drawn_anew(seed: int | None) -> None:
    drawn = {parse(seed=seed).seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_the_largest_seed_is_taken_as_it_is() -> None:
    assert parse(seed=MAX_SEED).seed == MAX_SEED


@pytest.mark.parametrize(
    ("alias", "value", "field", "expected"),
    [
        ("num_inference_steps", 9, "steps", 9),
        ("guidance_scale", 4, "scale", 4.0),
        ("cfg_scale", 4.5, "scale", 4.5),
        ("scheduler", "K_EULER", "sampler", "euler"),
        ("sampler_name", "DPM++ 2M Karras", "sampler_name", "dpmpp_2m_karras"),
        ("sampler_name", "DDIM", "sampler", "ddim"),
        ("scheduler", "DPMSolverMultistep", "sampler", "dpmpp_2m"),
        ("num_outputs", 2, "num_images", 2),
        ("batch_size", 2, "num_images", 2),
        ("num_images_per_prompt", 2, "num_images", 2),
        ("init_image", "aGk=", "image", "aGk="),
        ("image_url", "https://example.com/a.png", "image", "https://example.com/a.png"),
        ("init_images", ["aGk="], "image", "aGk="),
    ],
)
def test_other_workers_names_are_accepted(alias: str, value: Any, field: str, expected: Any) -> None:
    assert getattr(parse(**{alias: value}), field) == expected


@pytest.mark.parametrize("alias", ["prompt_strength", "denoising_strength"])
def test_other_names_of_strength(alias: str) -> None:
    assert parse(image="aGk=", **{alias: 0.25}).strength == 0.25


def test_a_scheduler_that_is_a_schedule_means_the_schedule() -> None:
    assert parse(sampler="euler", scheduler="Karras").sampler_name == "euler_karras"
    assert parse(sampler_name="Euler", scheduler="karras", schedule="karras").sampler_name == "euler_karras"
    assert parse(scheduler="default").sampler_name == "dpmpp_2m"
    assert "schedule and scheduler" in problem(schedule="default", scheduler="karras")


@pytest.mark.parametrize(("alias", "field"), sorted(ALIASES.items()))
def test_two_names_with_one_value_are_fine_with_two_values_are_not(alias: str, field: str) -> None:
    one, other = {
        "steps": (9, 10), "scale": (2, 3.5), "sampler": ("euler", "ddim"), "num_images": (1, 2),
        "image": ("aGk=", "aGkh"), "strength": (0.5, 0.25), "mask": ("aGk=", "aGkh"),
    }[field]  # fmt: skip

    def named(value: Any) -> Any:
        return [value] if alias == "init_images" else value

    if field == "mask":
        assert "two names" not in problem(**{field: one, alias: named(one)})
    else:
        assert getattr(parse(**{field: one, alias: named(one)}), field) == one
    message = problem(**{field: one, alias: named(other)})
    assert f"{field} and {alias}: two names of one field with different values" in message
    assert "aGk" not in message


def test_true_is_not_the_same_value_as_one() -> None:
    assert "two names" in problem(num_images=1, batch_size=True)


BAD = [
    ("prompt", 5, "5 is not a string"),
    ("prompt", None, "null is not a string"),
    ("prompt", "", "is empty"),
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
    ("steps", 25.0, "25.0 is not a whole number"),
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
    ("height", 512.0, "512.0 is not a whole number"),
    ("num_images", 0, "0 is not a whole number from 1 to 16"),
    ("num_images", 17, "17 is not a whole number from 1 to 16"),
    ("image", 5, "5 is not a string"),
    ("image", "", "is empty"),
    ("strength", 0, "0 is not a number over 0 and up to 1"),
    ("strength", 1.01, "1.01 is not a number over 0 and up to 1"),
    ("mask", "aGk=", "inpainting is not available"),
    ("mask", 5, "5 is not a string"),
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
    assert {field for field, _, _ in BAD} == set(Fields.model_fields)


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


@pytest.mark.parametrize("name", ["x" * 1_000_000, "\ud800", "two words", ""])
def test_a_hostile_field_name_is_shown_short_and_in_ascii(name: str) -> None:
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


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(None, "is missing"), ([], "a list is not an object"), ("x", "'x' is not an object"), (3, "3 is not an object"),
     ({}, "prompt: is required")],
)  # fmt: skip
def test_a_job_without_fields_is_refused(payload: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_request(payload, LIMITS)


@pytest.mark.parametrize(
    "value", [[], ["a", "b"], "aGk=", {}, 5], ids=["none", "two", "no list", "an object", "a number"]
)
def test_init_images_is_a_list_of_one(value: Any) -> None:
    assert "is not a list of one picture" in problem(init_images=value)


def test_no_picture_and_no_mask_may_be_said_with_null() -> None:
    job = parse(image=None, mask=None, init_images=None, mask_image=None)
    assert (job.image, job.warnings) == (None, ())


def test_pixels_are_limited_over_all_pictures() -> None:
    limits = Limits(max_pixels=256 * 256, native_size=128)
    assert parse_request({"prompt": "x", "num_images": 4}, limits).width == 128
    with pytest.raises(InvalidRequest, match=r"128 x 128 x 5 is 81,920 pixels.*65,536"):
        parse_request({"prompt": "x", "num_images": 5}, limits)
    with pytest.raises(InvalidRequest, match="264 x 256 x 1"):
        parse_request({"prompt": "x", "width": 264, "height": 256}, limits)


def test_pixels_are_limited_where_a_picture_will_choose_the_size() -> None:
    limits = Limits(max_pixels=4 * 64 * 64, native_size=512)
    job = parse_request({"prompt": "x", "image": "aGk=", "num_images": 4}, limits)
    assert (job.width, job.height) == (None, None)
    with pytest.raises(InvalidRequest, match="num_images: 5 pictures are at least 20,480 pixels"):
        parse_request({"prompt": "x", "image": "aGk=", "num_images": 5}, limits)
    with pytest.raises(InvalidRequest, match="at least 32,768 pixels"):
        parse_request({"prompt": "x", "image": "aGk=", "width": 512}, limits)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"strength": 0.5}, "strength did nothing"),
        ({"denoising_strength": 0.5}, "denoising_strength did nothing"),
        ({"do_scale": False, "cfg_scale": 3}, "cfg_scale did nothing"),
        ({"do_scale": False, "negative_prompt": "x"}, "negative_prompt did nothing: do_scale is false"),
        ({"scale": 1, "negative_prompt": "x"}, "negative_prompt did nothing: it acts only with a scale over 1"),
    ],
)
def test_what_does_nothing_is_said(fields: dict[str, Any], warning: str) -> None:
    (said,) = parse(**fields).warnings
    assert warning in said


def test_strength_with_an_image_needs_no_warning() -> None:
    assert parse(strength=0.5, image="aGk=").warnings == ()


def test_an_answer_carries_the_uid_that_was_sent_even_to_a_bad_job() -> None:
    assert uid_of({"uid": "../../etc/passwd", "steps": "x"}) == "../../etc/passwd"
    for payload in (None, [], {}, {"uid": 5}, {"uid": ""}, {"uid": "x" * 129}, {"uid": "\ud800"}):
        assert len(uid_of(payload)) == 8


def test_no_error_quotes_a_prompt_or_a_picture() -> None:
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
field_names = st.sampled_from([*Fields.model_fields, *ALIASES]) | st.text(st.characters())
plausible = st.sampled_from([1, 8, 64, 512, 0.5, "euler", "karras", "png", "a cat", ["x"], True, -1, 2**70, "\0"])


@settings(max_examples=400, deadline=None)
@given(json_values | st.dictionaries(field_names, json_values | plausible, max_size=6))
def test_anything_is_a_job_or_one_readable_error(payload: Any) -> None:
    try:
        job = parse_request(payload, LIMITS)
    except InvalidRequest as error:
        message = str(error)
        assert message
        message.encode("utf-8")
        assert len(message) < 20_000
    else:
        assert isinstance(job, ParsedJob)
        assert 0 <= job.seed <= MAX_SEED
        assert 1 <= len(job.prompt) <= 8_000
        json.dumps([job.uid, job.scale, job.strength, job.warnings], allow_nan=False).encode("utf-8")
