"""Bodies of A1111's API as jobs."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webuiapi import WebUIApi

from sd_core.errors import InvalidRequest
from sd_core.fields import Record
from sd_core.nested import Hires
from tests.support.records import plain_record
from worker.api import found
from worker.api.a1111 import translate
from worker.api.a1111_rules import RULES, SETTINGS, SHARED
from worker.api.job import JOB, Job, Limits, parse_request

LIMITS = Limits(2**24, {"tiny": 64, "dream": 512})


PLAIN = plain_record()


def parse(record: Record = JOB, **fields: Any) -> Job:
    return parse_request({"prompt": "a cat", "save_images": False, **fields}, LIMITS, record=record)


def problem(**fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return str(caught.value)


def payload(record: Record = JOB, **body: Any) -> dict[str, Any]:
    """What a body is translated into."""
    return translate({"save_images": False, **body}, record).payload


def nothing(job: Job) -> set[str]:
    """The names in the warning about fields that ask for nothing."""
    (warning,) = [text for text in job.warnings if text.startswith("fields that ask for nothing here: ")]
    return set(warning.partition(": ")[2].split(", "))


def others(job: Job) -> list[str]:
    return [text for text in job.warnings if not text.startswith("fields that ask for nothing here: ")]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The bodies that webuiapi would have posted."""
    bodies: list[dict[str, Any]] = []
    monkeypatch.setattr(WebUIApi, "check_extensions", lambda self: None)
    monkeypatch.setattr(WebUIApi, "post_and_get_api_result", lambda self, url, json, use_async: bodies.append(json))
    return bodies


def test_a_text_to_image_body_of_webuiapi(sent: list[dict[str, Any]]) -> None:
    WebUIApi().txt2img(prompt="a cat", negative_prompt="fog", seed=5, width=72, height=64, batch_size=2, n_iter=3)
    job = parse_request(sent[0], LIMITS)
    request = job.request
    assert (request.prompt, request.negative_prompt, request.seed, request.num_images) == ("a cat", "fog", 5, 6)
    assert (request.width, request.height, request.steps, request.scale) == (72, 64, 20, 7.0)
    assert job.sampler_name == "euler_a"
    assert {"send_images", "enable_hr", "hr_scale", "subseed", "s_churn", "styles", "alwayson_scripts"} <= nothing(job)
    assert nothing(job) <= sent[0].keys() - {"n_iter", "batch_size", "sampler_name"}


def test_an_image_to_image_body_of_webuiapi(sent: list[dict[str, Any]]) -> None:
    WebUIApi().img2img(images=[Image.new("RGB", (64, 64))], prompt="a cat", denoising_strength=0.5)
    job = parse_request(sent[0], LIMITS)
    assert job.source == sent[0]["init_images"][0]
    assert (job.request.strength, job.sampler_name, job.width) == (0.5, "euler_a", 512)
    assert {"mask_blur", "inpainting_fill", "inpaint_full_res", "resize_mode", "include_init_images"} <= nothing(job)


def test_webuiapis_second_pass_and_settings(sent: list[dict[str, Any]]) -> None:
    WebUIApi().txt2img(
        prompt="a cat", enable_hr=True, hr_scale=1.5, hr_second_pass_steps=7, denoising_strength=0.4,
        override_settings={"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "dream.safetensors [0123456789]"},
    )  # fmt: skip
    request: Any = parse_request(sent[0], LIMITS).request
    assert request.hires == Hires(scale=1.5, upscaler="latent", steps=7, strength=0.4)
    assert (request.clip_skip, request.model) == (2, "dream")
    today = translate(sent[0], PLAIN)
    assert today.payload["model"] == "dream.safetensors [0123456789]"
    assert "enable_hr did nothing: hires is not available here" in today.warnings
    assert "override_settings.CLIP_stop_at_last_layers did nothing: clip_skip is not available here" in today.warnings


def test_a_job_without_a_name_of_the_apis_own_is_left_as_it_is() -> None:
    job = {"prompt": "x", "sampler_name": "Euler", "cfg_scale": None, "denoising_strength": 0.5, "eta": None}
    assert translate(job, JOB).payload == job
    assert translate(job, JOB).warnings == ()
    assert parse_request({"prompt": "x", "denoising_strength": 0.5}, LIMITS).warnings != ()


def test_the_count_is_a_product() -> None:
    assert parse(n_iter=3).request.num_images == 3
    assert parse(n_iter=3, batch_size=2).request.num_images == 6
    assert parse(n_iter=None, batch_size=2).request.num_images == 2
    assert "batch_size: 24 is not a whole number from 1 to 16" in problem(n_iter=4, batch_size=6)
    assert "batch_size: true is not" in problem(n_iter=True, batch_size=1)
    assert "batch_size: '2' is not" in problem(n_iter="2", batch_size=1)


def test_the_samplers_name_wins_over_its_index() -> None:
    assert parse(sampler_name="Heun", sampler_index="Euler").sampler_name == "heun"
    assert "sampler_index" in nothing(parse(sampler_name="Heun", sampler_index="Euler"))
    assert "sampler_index" not in nothing(parse(sampler_index="Heun"))
    assert parse(sampler_name=None, sampler_index="Heun").sampler_name == "heun"
    assert parse(sampler_name="", sampler_index="Heun").sampler_name == "heun"
    assert parse(sampler_index="DPM++ 2M", scheduler="automatic").sampler_name == "dpmpp_2m_karras"
    assert parse(sampler_index="DPM++ 2M", scheduler="").sampler_name == "dpmpp_2m_karras"
    assert parse(sampler_index="Euler", scheduler="Karras").sampler_name == "euler_karras"
    assert "sampler is 'Oiler'" in problem(sampler_name="Oiler")
    assert "schedule is 'Caras'" in problem(sampler_name="Euler", scheduler="Caras")


def test_a_schedule_that_the_sampler_cannot_follow_is_dropped() -> None:
    job = parse(sampler_name="DDIM", scheduler="Karras")
    assert job.sampler_name == "ddim"
    assert others(job) == ["scheduler did nothing: sampler ddim has no schedule 'karras'; it has default"]
    with pytest.raises(InvalidRequest):
        parse_request({"prompt": "x", "sampler_name": "DDIM", "scheduler": "Karras"}, LIMITS)


def test_an_option_that_the_sampler_lacks_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    solvers = {name: replace(solver, options={}) for name, solver in found.SOLVERS.items()}
    heun = replace(solvers["heun"], options={"s_churn": 0.0})
    monkeypatch.setattr(found, "SOLVERS", {**solvers, "heun": heun})
    body = translate({"n_iter": 1, "sampler_name": "Euler", "s_churn": 0.5}, JOB)
    assert "s_churn" not in body.payload
    assert "s_churn did nothing: sampler euler has no such option" in body.warnings
    assert payload(sampler_name="Heun", s_churn=0.5)["s_churn"] == 0.5


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"subseed": 7, "subseed_strength": 0.5}, {"subseed": 7, "subseed_strength": 0.5}),
        ({"subseed": 7, "subseed_strength": 0}, {}),
        ({"subseed": -1, "subseed_strength": 0.5}, {"subseed_strength": 0.5}),
        ({"s_tmax": 0, "s_tmin": 0, "s_churn": 0, "s_noise": 1, "eta": None}, {}),
        ({"tiling": True}, {"tiling": True}),
        ({"tiling": False}, {}),
        ({"seed": -1, "steps": None, "cfg_scale": None}, {"seed": -1}),
        ({"infotext": ""}, {}),
        ({"infotext": "a dog"}, {"infotext": "a dog"}),
        ({"denoising_strength": 0.5}, {}),
        ({"denoising_strength": 0.5, "init_images": []}, {}),
        ({"init_images": ["x"], "denoising_strength": 0.5}, {"init_images": ["x"], "denoising_strength": 0.5}),
        ({"init_images": ["x"], "resize_mode": 2}, {"init_images": ["x"], "resize_mode": "fill"}),
        ({"init_images": ["x"], "resize_mode": 0}, {"init_images": ["x"]}),
        ({"init_images": ["x"], "resize_mode": 7}, {"init_images": ["x"], "resize_mode": 7}),
        ({"resize_mode": 2}, {}),
        ({"mask": "m", "mask_blur": None, "mask_blur_x": 6, "mask_blur_y": 4},
         {"mask": "m", "mask_blur_x": 6, "mask_blur_y": 4}),
        ({"mask": "m", "mask_blur": 0}, {"mask": "m", "mask_blur": 0}),
        ({"mask": "m", "inpainting_fill": 0}, {"mask": "m", "inpainting_fill": "fill"}),
        ({"mask": "m", "inpainting_fill": 3}, {"mask": "m", "inpainting_fill": "latent_nothing"}),
        ({"mask": "m", "inpaint_full_res": True}, {"mask": "m", "inpaint_full_res": "masked"}),
        ({"mask": "m", "inpaint_full_res": False}, {"mask": "m", "inpaint_full_res": "whole"}),
        ({"mask": "m", "inpainting_mask_invert": 1}, {"mask": "m", "inpainting_mask_invert": True}),
        ({"mask": "m", "inpaint_full_res_padding": 0}, {"mask": "m", "inpaint_full_res_padding": 0}),
        ({"image": "x", "mask_image": "m", "mask_blur": 8, "resize_mode": 1},
         {"image": "x", "mask_image": "m", "mask_blur": 8, "resize_mode": "crop"}),
        ({"mask": None, "mask_blur": 8, "inpainting_fill": 2, "inpainting_mask_invert": 0}, {}),
        ({"enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent"}, {}),
        ({"enable_hr": True}, {"hires": {}}),
        ({"enable_hr": True, "hr_scale": 2, "hr_resize_x": 0, "hr_resize_y": 0}, {"hires": {"hr_scale": 2}}),
        ({"enable_hr": True, "hr_scale": 2, "hr_resize_x": 96, "hr_resize_y": 72},
         {"hires": {"hr_resize_x": 96, "hr_resize_y": 72}}),
        ({"enable_hr": True, "hr_prompt": "", "hr_sampler_name": "Use same sampler", "hr_second_pass_steps": 0,
          "hr_scheduler": None, "hr_checkpoint_name": "Use same checkpoint"}, {"hires": {}}),
        ({"enable_hr": True, "hr_prompt": "a dog", "hr_sampler_name": "Euler", "denoising_strength": 0.3},
         {"hires": {"hr_prompt": "a dog", "hr_sampler_name": "Euler", "strength": 0.3}}),
        ({"enable_hr": True, "init_images": ["x"], "denoising_strength": 0.3},
         {"hires": {}, "init_images": ["x"], "denoising_strength": 0.3}),
        ({"override_settings": {"randn_source": "GPU"}}, {"rng": "nv"}),
        ({"override_settings": {"randn_source": "CPU", "sd_vae": "Automatic"}}, {"rng": "cpu"}),
        ({"override_settings": {"sd_vae": "a.pt", "eta_noise_seed_delta": 31337}},
         {"vae": "a.pt", "eta_noise_seed_delta": 31337}),
        ({"override_settings": {"img2img_fix_steps": True}}, {"strength_steps": "exact"}),
        ({"override_settings": {"img2img_fix_steps": False}}, {}),
        ({"override_settings": {"samples_format": "jpg", "jpeg_quality": 80}},
         {"output_format": "jpeg", "output_quality": 80}),
        ({"override_settings": None, "alwayson_scripts": {}}, {}),
    ],
)  # fmt: skip
def test_each_name_becomes_the_field_that_it_means(body: dict[str, Any], expected: dict[str, Any]) -> None:
    assert payload(**body) == expected
    assert translate({"save_images": False, **body}, JOB).warnings[:-1] == ()


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ({"tiling": True}, "tiling did nothing: tiling is not available here"),
        ({"subseed_strength": 0.5}, "subseed_strength did nothing: variation_strength is not available here"),
        ({"restore_faces": True}, "restore_faces did nothing: it is not available here"),
        ({"styles": ["photo"]}, "styles did nothing: it is not available here"),
        ({"script_name": "x/y/z plot"}, "script_name did nothing: it is not available here"),
        ({"refiner_checkpoint": "a"}, "refiner_checkpoint did nothing: it is not available here"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}},
         "override_settings.CLIP_stop_at_last_layers did nothing: clip_skip is not available here"),
        ({"override_settings": {"sigma_max": 3}}, "override_settings.sigma_max did nothing: it is not available here"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}},
         "alwayson_scripts.ADetailer did nothing: it is not available here"),
        ({"alwayson_scripts": {"Self Attention Guidance": {"args": [True]}}},
         "alwayson_scripts.'Self Attention Guidance' did nothing: it is not available here"),
    ],
)  # fmt: skip
def test_what_does_not_exist_here_is_named(body: dict[str, Any], warning: str) -> None:
    translated = translate({"send_images": True, **body}, PLAIN)
    assert translated.warnings == (warning, "fields that ask for nothing here: send_images")
    assert translated.payload == {}


def test_scripts_that_are_off_ask_for_nothing() -> None:
    job = parse(alwayson_scripts={"ControlNet": {"args": []}, "ADetailer": {"args": [False]}})
    assert others(job) == []
    assert {"alwayson_scripts.ControlNet", "alwayson_scripts.ADetailer"} <= nothing(job)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"override_settings": "x"}, "override_settings: 'x' is not an object"),
        ({"alwayson_scripts": [1]}, "alwayson_scripts: a list is not an object"),
        ({"colour": 1}, "colour: unknown field"),
        ({"steps": 0}, "steps: 0 is not a whole number"),
        ({"cfg_scale": "7"}, "cfg_scale: '7' is not a number"),
        ({"scheduler": "karras", "schedule": "default"}, "scheduler and schedule: two names of one field"),
        ({"init_images": ["a", "b"]}, "init_images: a list of 2 is not a list of one"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_that_was_sent(body: dict[str, Any], reason: str) -> None:
    assert reason in problem(**body)


def test_a_second_pass_is_asked_for_by_true() -> None:
    with pytest.raises(InvalidRequest, match="enable_hr: 'yes' is not true or false"):
        parse(enable_hr="yes")


def test_a_body_may_fill_a_job_and_be_filled() -> None:
    body = {"prompt": "a cat", "seed": 5, "steps": 7, "send_images": True, "n_iter": 2, "sampler_index": "Heun"}
    request = parse_request({"parameters": body, "steps": 3}, LIMITS).request
    assert (request.prompt, request.seed, request.steps, request.num_images) == ("a cat", 5, 3, 2)
    body = {"send_images": True, "steps": 7, "infotext": "a dog\nSteps: 3, Seed: 9, Sampler: Heun, RNG: CPU"}
    request = parse_request(body, LIMITS).request
    assert (request.prompt, request.seed, request.steps, request.sampler) == ("a dog", 9, 7, "heun")


def test_every_field_of_the_table_is_one_of_the_contracts_and_no_rule_is_idle() -> None:
    fields = {rule.field.partition(".")[0] for rule in [*RULES.values(), *SETTINGS.values()] if rule.field is not None}
    known = {field.name for field in JOB} | {"image_scale"}
    assert fields <= known
    for rule in RULES.values():
        assert not rule.beside or rule.beside in RULES


names = st.sampled_from([*RULES, "override_settings", "alwayson_scripts"])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 600) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*SETTINGS, "x"]), inner, max_size=3),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(body=st.dictionaries(names, values, max_size=8))
def test_any_body_is_a_job_or_an_error(body: dict[str, Any]) -> None:
    before = repr(body)
    with suppress(InvalidRequest):
        parse_request({**body, "send_images": True}, LIMITS)
    assert repr(body) == before


def test_a_body_with_endless_settings_makes_few_warnings() -> None:
    job = parse(override_settings={f"setting {index}": index for index in range(10_000)})
    assert len(job.warnings) < 150
    assert SHARED.keys() < RULES.keys()
