import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_core.errors import InvalidRequest
from sd_core.groups import MAX_SEED
from sd_core.request import Request
from tests.support.job_fields import LIMITS, parse, problem, value_of
from worker.api.job import JOB, Door, Job, Limits, parse_request, uid_of

ALIASES = {alias: field.name for field in JOB for alias in field.aliases}


def test_defaults_are_the_documented_ones() -> None:
    job = parse()
    seed = job.request.seed
    assert job.request == Request(prompt="a cat", seed=seed, width=512, height=512, model="tiny")
    assert (job.request.steps, job.request.scale, job.request.do_scale) == (25, 7.5, True)
    assert (job.request.num_images, job.request.strength, job.sampler_name) == (1, 0.8, "dpmpp_2m_karras")
    assert (job.source, job.width, job.height, job.warnings) == (None, None, None, ())
    assert job.door == Door(uid=job.door.uid, output_format="png", preview=False)
    assert 0 <= seed < 2**32
    assert len(job.door.uid) == 8
    int(job.door.uid, 16)


def test_a_whole_job_becomes_a_request() -> None:
    job = parse(
        prompt="a dog", negative_prompt="fog", uid="u 1", steps=7, scale=3, seed=5, sampler="euler", width=64,
        height=128, num_images=2, output_format="webp", preview=True,
    )  # fmt: skip
    assert job.door == Door(uid="u 1", output_format="webp", preview=True)
    assert job.request == Request(
        prompt="a dog", negative_prompt="fog", seed=5, width=64, height=128, steps=7, scale=3.0,
        sampler="euler", schedule="default", num_images=2, model="tiny",
    )  # fmt: skip


def test_an_empty_prompt_is_taken_and_a_missing_one_is_not() -> None:
    assert parse(prompt="").request.prompt == ""
    with pytest.raises(InvalidRequest, match=r"^prompt: is required$"):
        parse_request({"steps": 3}, LIMITS)


@pytest.mark.parametrize(("field", "value"), [("steps", 25), ("seed", 7), ("width", 512), ("num_images", 2)])
def test_a_whole_number_may_be_written_with_a_point(field: str, value: int) -> None:
    taken = getattr(parse(**{field: float(value)}).request, field)
    assert (taken, type(taken)) == (value, int)
    assert parse(steps=25, num_inference_steps=25.0).request.steps == 25


def test_without_do_scale_there_is_no_guidance() -> None:
    assert parse(do_scale=False).request.guidance_scale == 1.0


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_of_null_or_minus_one_is_random(seed: int | None) -> None:
    drawn = {parse(seed=seed).request.seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**32 for seed in drawn)


@pytest.mark.parametrize(
    ("alias", "value", "field", "expected"),
    [
        ("num_inference_steps", 9, "steps", 9),
        ("guidance_scale", 4, "scale", 4.0),
        ("cfg_scale", 4.5, "scale", 4.5),
        ("scheduler", "K_EULER", "sampler", "euler"),
        ("sampler_name", "DPM++ 2M Karras", "sampler", "dpmpp_2m_karras"),
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
    assert value_of(parse(**{alias: value}), field) == expected


@pytest.mark.parametrize("alias", ["prompt_strength", "denoising_strength"])
def test_other_names_of_strength(alias: str) -> None:
    assert parse(image="aGk=", **{alias: 0.25}).request.strength == 0.25


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"sampler": "euler", "scheduler": "Karras"}, "euler_karras"),
        ({"sampler_name": "Euler", "scheduler": "karras", "schedule": "karras"}, "euler_karras"),
        ({"scheduler": "default"}, "dpmpp_2m"),
        ({"scheduler": "K_EULER"}, "euler"),
        ({"scheduler": "DDIM"}, "ddim"),
        ({"scheduler": "K_EULER", "schedule": "karras"}, "euler_karras"),
        ({"sampler": "euler", "scheduler": "euler"}, "euler"),
        ({"sampler_name": "Euler a", "scheduler": None}, "euler_a"),
        ({"sampler_name": None, "scheduler": "K_EULER"}, "euler"),
        ({"sampler_name": None, "scheduler": "Karras"}, "dpmpp_2m_karras"),
        ({"sampler": "euler", "sampler_name": None, "schedule": None}, "euler"),
        ({"sampler": None, "sampler_name": "Euler"}, "euler"),
    ],
)
def test_a_scheduler_beside_a_sampler_is_the_schedule_and_alone_what_it_names(
    fields: dict[str, Any], expected: str
) -> None:
    assert parse(**fields).sampler_name == expected


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sampler_name": "DPM++ 2M", "scheduler": "Nonesuch"}, "schedule is 'Nonesuch'"),
        ({"sampler": "euler", "scheduler": "heun"}, "schedule is 'heun'"),
        ({"scheduler": "Nonesuch"}, "sampler is 'Nonesuch'"),
        ({"sampler": "euler", "scheduler": ""}, "scheduler: is empty"),
        ({"scheduler": ""}, "scheduler: is empty"),
        ({"sampler": "euler", "scheduler": 5}, "scheduler: 5 is not a string"),
        ({"sampler": 5, "scheduler": "karras"}, "sampler: 5 is not a string"),
    ],
)
def test_a_bad_scheduler_is_named_as_what_it_means(fields: dict[str, Any], reason: str) -> None:
    message = problem(**fields)
    assert reason in message
    assert "two names" not in message


def test_two_schedules_are_two_names_of_one_field() -> None:
    message = problem(sampler="euler", schedule="default", scheduler="karras")
    assert "schedule and scheduler: two names of one field with different values" in message


# A scheduler beside a sampler is its schedule: tested above. `parameters` has tests of its own.
PLAIN_ALIASES = sorted(
    (alias, field) for alias, field in ALIASES.items() if alias != "scheduler" and field != "parameters"
)


@pytest.mark.parametrize(("alias", "field"), PLAIN_ALIASES)
def test_two_names_of_one_field_need_equal_values(alias: str, field: str) -> None:
    one, other = {
        "steps": (9, 10), "scale": (2, 3.5), "sampler": ("euler", "ddim"), "num_images": (1, 2),
        "image": ("aGk=", "aGkh"), "strength": (0.5, 0.25), "mask": ("aGk=", "aGkh"), "mask_invert": (True, False),
        "inpaint_fill": ("fill", "original"), "inpaint_area": ("masked", "whole"), "inpaint_padding": (8, 9),
        "variation_seed": (9, 10), "variation_strength": (0.5, 0.25), "image_scale": (2, 3.5),
    }[field]  # fmt: skip
    name = alias.removesuffix("[0]")

    def named(value: Any) -> Any:
        return value if name == alias else [value]

    image = {} if field == "image" else {"image": "aGk="}
    assert value_of(parse(**image, **{field: one, name: named(one)}), field) == one
    message = problem(**image, **{field: one, name: named(other)})
    assert f"{field} and {name}: two names of one field with different values" in message
    assert "aGk" not in message


def test_true_is_not_the_same_value_as_one() -> None:
    assert "two names" in problem(num_images=1, batch_size=True)


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
    assert "is not a list of one" in problem(init_images=value)


def test_null_means_no_image_and_no_mask() -> None:
    job = parse(image=None, mask=None, init_images=None, mask_image=None)
    assert (job.source, job.mask_source, job.warnings) == (None, None, ())


def test_pixels_are_limited_over_all_images() -> None:
    limits = Limits(max_pixels=256 * 256, native_sizes={"tiny": 128})
    assert parse_request({"prompt": "x", "num_images": 4}, limits).request.width == 128
    with pytest.raises(InvalidRequest, match=r"128 x 128 x 5 is 81,920 pixels.*65,536"):
        parse_request({"prompt": "x", "num_images": 5}, limits)
    with pytest.raises(InvalidRequest, match="264 x 256 x 1"):
        parse_request({"prompt": "x", "width": 264, "height": 256}, limits)


def test_pixels_are_limited_if_the_sent_image_decides_the_size() -> None:
    limits = Limits(max_pixels=4 * 64 * 64, native_sizes={"tiny": 512})
    job = parse_request({"prompt": "x", "image": "aGk=", "num_images": 4}, limits)
    assert (job.width, job.height) == (None, None)
    with pytest.raises(InvalidRequest, match="num_images: 5 images are at least 20,480 pixels"):
        parse_request({"prompt": "x", "image": "aGk=", "num_images": 5}, limits)
    with pytest.raises(InvalidRequest, match="at least 32,768 pixels"):
        parse_request({"prompt": "x", "image": "aGk=", "width": 512}, limits)


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"strength": 0.5}, "strength did nothing: it has no effect without image"),
        ({"denoising_strength": 0.5}, "denoising_strength did nothing"),
        ({"do_scale": False, "cfg_scale": 3}, "cfg_scale did nothing"),
        ({"do_scale": False, "negative_prompt": "x"}, "negative_prompt did nothing: do_scale is false"),
        ({"scale": 1, "negative_prompt": "x"}, "negative_prompt did nothing: it has no effect without a scale over 1"),
    ],
)
def test_a_field_without_effect_brings_a_warning(fields: dict[str, Any], warning: str) -> None:
    (text,) = parse(**fields).warnings
    assert warning in text


def test_the_size_is_checked_against_the_named_model() -> None:
    limits = Limits(max_pixels=512 * 512, native_sizes={"small": 64, "v1-5": 512, "wide": 1024})

    def parsed(**fields: Any) -> Request:
        return parse_request({"prompt": "x", **fields}, limits).request

    for name in ("v1-5", "V1-5", "v1-5.safetensors", "v1-5.safetensors [0123456789]", "v1-5 [0123456789]", "v1-5.CKPT"):
        assert (parsed(model=name).model, parsed(model=name).width) == ("v1-5", 512)
    for none in ({}, {"model": None}):
        assert (parsed(**none).model, parsed(**none).width) == ("small", 64)
    assert parsed(model="small", num_images=16).width == 64
    with pytest.raises(InvalidRequest, match="512 x 512 x 2 is 524,288 pixels"):
        parsed(model="v1-5", num_images=2)
    with pytest.raises(InvalidRequest, match="1024 x 1024 x 1 is 1,048,576 pixels"):
        parsed(model="wide")
    assert parsed(model="wide", width=512, height=512).width == 512


def test_an_unknown_model_and_other_problems_are_named_in_one_error() -> None:
    message = problem(model="tini", sampler="eulr", steps=0, num_images=16, width=2048, height=2048)
    for part in ("model: 'tini'", "did you mean 'tiny'", "sampler is 'eulr'", "steps: 0", "67,108,864 pixels"):
        assert part in message


def test_strength_with_an_image_needs_no_warning() -> None:
    assert parse(strength=0.5, image="aGk=").warnings == ()


def test_the_response_to_a_bad_job_carries_its_uid() -> None:
    assert uid_of({"uid": "../../etc/passwd", "steps": "x"}) == "../../etc/passwd"
    for payload in (None, [], {}, {"uid": 5}, {"uid": ""}, {"uid": "x" * 129}, {"uid": "\ud800"}):
        assert len(uid_of(payload)) == 8


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
field_names = st.sampled_from(sorted(JOB.names)) | st.text(st.characters())
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
        assert isinstance(job, Job)
        assert 0 <= job.request.seed <= MAX_SEED
        assert len(job.request.prompt) <= 8_000
        json.dumps([*vars(job.door).values(), *vars(job.request).values(), job.warnings], allow_nan=False).encode()
