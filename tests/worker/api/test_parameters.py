"""`parameters`: what made an image, sent back, makes it again."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from sd_core.errors import InvalidRequest
from sd_core.groups import MAX_SEED
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from worker.api.infotext import infotext
from worker.api.job import Job, Limits, parse_request
from worker.api.names import a1111_labels
from worker.api.parameters import picture_of
from worker.api.response import parameters

LIMITS = Limits(2**24, {"tiny": 64, "other, one": 512})
MODEL = {"name": "tiny", "sha256": "0123456789abcdef" * 4}


def parse(**fields: Any) -> Job:
    return parse_request({"uid": "u", **fields}, LIMITS)


def problem(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return str(caught.value)


def text_of(job: Job, seed: int | None = None) -> str:
    return infotext(with_image(job), job.request.seed if seed is None else seed, MODEL)


def with_image(job: Job) -> Job:
    """The job with the image that it names."""
    image = None if job.source is None else np.zeros((job.request.height, job.request.width, 3), np.uint8)
    return replace(job, request=replace(job.request, image=image))


samplers = st.sampled_from([(name, schedule) for name, solver in SOLVERS.items() for schedule in solver.schedules])
prompts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60) | st.lists(
    st.sampled_from(
        [
            "a cat",
            "\n",
            "Negative prompt: ",
            "Steps: 20, Sampler: Euler, Seed: 5",
            "Exact fields: {}",
            " ",
            ",",
            '"',
            "{",
        ]
    ),
    max_size=8,
).map("".join)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    prompt=prompts, negative=prompts, sampler=samplers, seed=st.integers(0, MAX_SEED), steps=st.integers(1, 150),
    scale=st.floats(0, 50), do_scale=st.booleans(), sides=st.tuples(st.integers(8, 64), st.integers(8, 64)),
    model=st.sampled_from(list(LIMITS.native_sizes)), strength=st.none() | st.floats(0.001, 1),
)  # fmt: skip
def test_a_text_sent_back_asks_for_the_same_image(
    prompt: str, negative: str, sampler: tuple[str, str], seed: int, steps: int, scale: float, do_scale: bool,
    sides: tuple[int, int], model: str, strength: float | None,
) -> None:  # fmt: skip
    width, height = 8 * sides[0], 8 * sides[1]
    try:
        SOLVERS[sampler[0]].grid(sampler[1], v1_schedule(), steps, strength)
    except InvalidRequest:
        reject()  # more steps than this sampler or schedule has
    image = {} if strength is None else {"image": "aGk=", "strength": strength}
    job = parse(
        prompt=prompt, negative_prompt=negative, sampler=sampler[0], schedule=sampler[1], seed=seed, steps=steps,
        scale=scale, do_scale=do_scale, width=width, height=height, model=model, **image,
    )  # fmt: skip
    again = parse(parameters=text_of(job), **({} if strength is None else {"image": "aGk="}))
    guided = replace(job.request, scale=job.request.guidance_scale, do_scale=True)
    assert again.request == guided
    assert [warning for warning in again.warnings if "negative_prompt did nothing" not in warning] == []
    by_object = parse(parameters=parameters(with_image(job)), **({} if strength is None else {"image": "aGk="}))
    assert by_object.request == job.request


def test_the_format_holds_what_it_can_and_the_exact_fields_hold_the_rest() -> None:
    assert "Exact fields" not in text_of(parse(prompt="a cat,\n on: a mat", negative_prompt="fog\nrain", seed=1))
    prompt = "a\nNegative prompt: b"
    text = text_of(parse(prompt=prompt, seed=1))
    exact = json.loads(text.partition("Exact fields: ")[2])
    assert json.loads(exact) == {"prompt": prompt, "negative_prompt": ""}
    assert parse(parameters=text).request.prompt == prompt


def test_every_sampler_with_its_schedule_is_read_from_its_labels() -> None:
    for name, solver in SOLVERS.items():
        for schedule in solver.schedules:
            label, schedule_label = a1111_labels(name, schedule)
            text = f"x\nSteps: 3, Sampler: {label}, Schedule type: {schedule_label}, Seed: 1, RNG: CPU"
            job = parse(parameters=text)
            assert (job.request.sampler, job.request.schedule, job.warnings) == (name, schedule, ())


def test_the_image_of_a_job_has_its_own_seed() -> None:
    job = parse(prompt="x", seed=MAX_SEED, num_images=2)
    again = parse(parameters=text_of(job, seed=job.request.seeds[1]))
    assert (again.request.seed, again.request.num_images) == (0, 1)


def test_what_the_job_names_wins() -> None:
    text = text_of(parse(prompt="a cat", negative_prompt="fog", seed=5, steps=7, width=72, height=80, sampler="euler"))
    request = parse(parameters=text, num_inference_steps=9, prompt="a dog", width=64, seed=-1).request
    assert (request.prompt, request.negative_prompt, request.steps) == ("a dog", "fog", 9)
    assert (request.width, request.height, request.sampler) == (64, 80, "euler")
    assert parse(parameters=text, seed=None).request.seed == 5
    assert parse(parameters=text, num_inference_steps=9, prompt="a dog").warnings == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "euler_karras"),
        ({"schedule": "default"}, "euler"),
        ({"scheduler": "default"}, "euler"),
        ({"scheduler": "K_HEUN"}, "heun_karras"),
        ({"sampler": "heun"}, "heun_karras"),
        ({"sampler_name": "Heun", "scheduler": "Uniform"}, "heun"),
        ({"sampler": None}, "euler_karras"),
    ],
)
def test_sampler_and_schedule_are_filled_apart(fields: dict[str, Any], expected: str) -> None:
    text = text_of(parse(prompt="x", sampler="euler_karras"))
    job = parse(parameters=text, **fields)
    assert (job.sampler_name, job.warnings) == (expected, ())


def test_a_schedule_that_the_jobs_own_sampler_cannot_follow_is_dropped() -> None:
    job = parse(parameters=text_of(parse(prompt="x", sampler="euler_karras")), sampler="ddim")
    assert job.sampler_name == "ddim"
    (warning,) = job.warnings
    assert warning.startswith("parameters: schedule was ignored: sampler ddim has no schedule 'karras'")


def test_strength_of_a_text_does_nothing_without_an_image() -> None:
    text = text_of(parse(prompt="x", image="aGk=", strength=0.25, width=64, height=64))
    assert parse(parameters=text, image="aGk=").request.strength == 0.25
    assert parse(parameters=text).warnings == (
        "parameters.strength did nothing: it has no effect without image or hires",
    )


def test_both_names_are_one_field() -> None:
    text = text_of(parse(prompt="x", seed=5))
    assert parse(infotext=text).request.seed == 5
    assert parse(infotext=text, parameters=text).request.seed == 5
    assert parse(prompt="x", infotext="", parameters=None).warnings == ()
    assert "parameters and infotext: two names of one field" in problem(infotext=text, parameters=text + " ")


def test_an_object_may_use_every_name_of_a_field() -> None:
    given = {"prompt": "x", "sampler_name": "Heun", "scheduler": "Karras", "cfg_scale": 3, "num_outputs": 2}
    request = parse(parameters=given).request
    assert (request.sampler, request.schedule, request.scale, request.num_images) == ("heun", "karras", 3.0, 2)


def test_an_object_is_checked_as_strictly_as_a_job() -> None:
    message = problem(parameters={"prompt": "x", "steps": 0, "sampler": "nonesuch", "colour": 1})
    for part in ("parameters.steps: 0 is not", "sampler is 'nonesuch'", "parameters.colour: unknown field"):
        assert part in message


def test_a_text_that_is_json_is_the_object() -> None:
    job = parse(prompt="x", seed=5, steps=3)
    assert parse(parameters=json.dumps(parameters(job))).request == job.request
    assert parse(parameters="{a|b} on a mat").request.prompt == "{a|b} on a mat"


def test_a_model_that_is_not_loaded_here_is_replaced_with_a_warning() -> None:
    for record in ("x\nSteps: 3, Seed: 5, Model: dream, RNG: CPU", {"prompt": "x", "model": "dream"}):
        job = parse(parameters=record)
        assert job.request.model == "tiny"
        assert job.warnings == (
            "parameters: the model was ignored: model: 'dream' is not here; there are: tiny, other, one",
        )


def test_a_novel_is_a_prompt_or_refused() -> None:
    novel = "It was a dark night: the rain fell, the wind blew.\n" * 100
    job = parse(parameters=novel)
    assert job.request.prompt == novel.rstrip("\n")
    assert job.warnings == ("parameters: the text has no line of parameters and was used as the prompt",)
    assert problem(parameters=novel * 2).startswith("parameters: prompt has 10,199 characters, at most 8,000")
    assert problem(parameters=novel * 10_000) == "parameters: has 51,000,000 characters, at most 150,000 are allowed"


@pytest.mark.parametrize(
    "text",
    ["a:" * 75_000, "," * 150_000, "a," * 74_999 + ":", 'a:"' * 50_000, "Negative prompt:\n" * 8_000,
     "\n" * 7_999 + "x", '{"a":' * 30_000, "[" * 100_000, "{" * 150_000],
    ids=["colons", "commas", "one colon", "quotes", "negatives", "lines", "objects", "lists", "braces"],
)  # fmt: skip
def test_hostile_text_is_read_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        parse(prompt="x", parameters=text)


@pytest.mark.parametrize("value", [5, True, [], ["x"], 1.5])
def test_what_is_no_record_is_refused(value: Any) -> None:
    assert "is not a text, an object or a picture" in problem(prompt="x", parameters=value)


def test_a_prompt_is_required_if_nothing_brings_one() -> None:
    assert problem(parameters={"steps": 3}) == "prompt: is required"
    assert parse(parameters={"steps": 3}, prompt="x").request.steps == 3


@pytest.mark.parametrize(
    ("value", "is_picture"),
    [
        ("https://example.com/a.png", True), (" HTTP://example.com/a.png\n", True),
        ("data:image/png;base64,aGk=", True), ("iVBORw0KGgoAAAA", True), ("/9j/4AAQ", True), ("UklGRgAA", True),
        ("https://a.example is a URL, a prompt", False),
        ("a cat", False), ("", False), ({"prompt": "x"}, False), (5, False),
    ],
)  # fmt: skip
def test_a_picture_is_known_by_how_it_begins(value: Any, is_picture: bool) -> None:
    assert picture_of({"parameters": value}) == (value if is_picture else None)
    assert picture_of({"prompt": value}) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=10), values, max_size=3),
)


@settings(max_examples=200, deadline=None)
@given(value=json_values)
def test_any_json_is_read_or_refused(value: Any) -> None:
    with suppress(InvalidRequest):
        parse(prompt="x", parameters=value)
