"""A hires pass as a job asks for it: nested, or by A1111's flat fields."""

from typing import Any

import pytest

from sd_core.errors import InvalidRequest
from sd_core.nested import UPSCALERS, Hires
from worker.api.infotext import infotext
from worker.api.job import Job, Limits, parse_request
from worker.api.response import parameters

LIMITS = Limits(2**22, {"tiny": 64})
MODEL = {"name": "tiny", "sha256": None}


def parse(**fields: Any) -> Job:
    return parse_request({"prompt": "a cat", **fields}, LIMITS)


def hires_of(**fields: Any) -> Hires:
    hires = parse(**fields).request.hires
    assert hires is not None
    return hires


def problem(limits: Limits = LIMITS, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse_request({"prompt": "a cat", **fields}, limits)
    return str(caught.value)


def test_what_is_left_out_has_its_default() -> None:
    assert hires_of(hires={}) == Hires(scale=2.0, upscaler="lanczos", strength=0.7)
    assert parse().request.hires is None and parse(hires=None).request.hires is None


def test_a1111s_fields_mean_the_same() -> None:
    flat = {
        "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent (antialiased)", "hr_second_pass_steps": 7,
        "hr_resize_x": 0, "hr_resize_y": 0, "hr_prompt": "a dog", "hr_negative_prompt": "", "hr_cfg": 3,
        "hr_sampler_name": "Euler a", "hr_scheduler": "Karras", "denoising_strength": 0.4,
    }  # fmt: skip
    nested = {
        "scale": 1.5, "upscaler": "latent_antialiased", "steps": 7, "prompt": "a dog", "cfg": 3.0,
        "sampler": "euler_a", "schedule": "karras", "strength": 0.4,
    }  # fmt: skip
    assert hires_of(**flat) == Hires(**nested) == hires_of(hires=nested)
    sizes = hires_of(enable_hr=True, hr_resize_x=128, hr_resize_y=96, hr_sampler_name="Use same sampler")
    assert (sizes.width, sizes.height, sizes.sampler) == (128, 96, None)


def test_flat_fields_act_only_with_the_switch() -> None:
    job = parse(enable_hr=False, hr_scale=2.0, hr_upscaler="Latent")
    assert job.request.hires is None
    assert job.warnings == ("fields that ask for nothing here: enable_hr, hr_scale, hr_upscaler",)
    job = parse(hr_scale=2.0, hr_prompt="", hr_upscaler="Latent")
    assert job.request.hires is None
    assert job.warnings == ("fields that ask for nothing here: hr_scale, hr_prompt, hr_upscaler",)
    assert problem(enable_hr=1) == "enable_hr: 1 is not true or false"
    assert "two ways to ask for one thing" in problem(enable_hr=True, hires={})


def test_a_bad_flat_field_is_named_as_it_was_written() -> None:
    assert problem(enable_hr=True, hr_scale=5) == "hr_scale: 5 is not a number from 1 to 4"
    assert problem(hires={"scale": 5}) == "hires.scale: 5 is not a number from 1 to 4"


@pytest.mark.parametrize(("name", "label"), UPSCALERS.items())
def test_upscalers_have_a1111s_names_too(name: str, label: str) -> None:
    assert hires_of(hires={"upscaler": label}).upscaler == name == hires_of(hires={"upscaler": name}).upscaler
    assert hires_of(hires={"upscaler": label.upper()}).upscaler == name


def test_no_upscaler_is_lanczos_and_a_files_name_stays() -> None:
    assert hires_of(hires={"upscaler": "None"}).upscaler == "lanczos"
    assert hires_of(hires={"upscaler": "4x-UltraSharp.pth"}).upscaler == "4x-UltraSharp.pth"


def test_strength_is_that_of_the_second_pass_unless_there_is_an_image() -> None:
    job = parse(strength=0.3, hires={})
    assert job.request.hires is not None
    assert job.request.hires.strength == job.request.strength == 0.3 and job.warnings == ()
    both = parse(denoising_strength=0.3, hires={"strength": 0.5, "cfg": 2}, do_scale=False)
    assert both.request.hires is not None and both.request.hires.strength == 0.5
    assert [warning.split(":")[0] for warning in both.warnings] == [
        "denoising_strength did nothing", "hires.cfg did nothing"
    ]  # fmt: skip
    with_image = parse(strength=0.3, image="aGk=", hires={})
    assert with_image.request.hires is not None
    assert (with_image.request.strength, with_image.request.hires.strength) == (0.3, 0.7)


def test_a_schedule_alone_is_for_the_jobs_sampler() -> None:
    hires = hires_of(sampler="euler_a", hires={"schedule": "Karras"})
    assert (hires.sampler, hires.schedule) == ("euler_a", "karras")
    assert problem(hires={"sampler": "eulr"}).startswith("hires.sampler is 'eulr'")


def test_the_limits_hold_at_the_final_size() -> None:
    assert "hires: 1024x64 would become 4096x256, but sides are" in problem(width=1024, hires={"scale": 4})
    text = problem(Limits(64 * 64 * 4, {"tiny": 64}), hires={"scale": 2.5})
    assert "hires: width x height x num_images: 160 x 160 x 1 is 25,600 pixels, over this worker's limit" in text
    assert "SD_MAX_PIXELS" in text
    assert parse_request({"prompt": "", "hires": {}}, Limits(64 * 64 * 4, {"tiny": 64})).request.hires
    assert "2 is 32,768 pixels" in problem(Limits(64 * 64 * 4, {"tiny": 64}), hires={}, num_images=2)


def test_the_response_and_the_infotext_say_it() -> None:
    job = parse(seed=1, hires={"scale": 1.5, "upscaler": "latent", "sampler": "Euler a", "steps": 9, "strength": 0.5})
    shown = parameters(job)
    assert shown["hires"]["upscaler"] == "latent" and shown["strength"] == 0.5
    assert parse_request(shown, LIMITS).request == job.request
    text = infotext(job, 1, MODEL)
    for part in (
        "Denoising strength: 0.5", "Hires upscale: 1.5", "Hires upscaler: Latent", "Hires steps: 9",
        "Hires sampler: Euler a", "Hires schedule type:",
    ):  # fmt: skip
        assert part in text, text
    assert "Hires resize: 128x0" in infotext(parse(hires={"width": 128}), 1, MODEL)
    assert "Hires" not in infotext(parse(), 1, MODEL)


def test_an_infotext_leaves_out_what_is_not_used() -> None:
    plain = infotext(parse(seed=1), 1, MODEL)
    used = infotext(
        parse(
            seed=1, tiling=True, guidance_rescale=0.5, pag_scale=3, guidance_end=0.8, deepcache=2, tome_ratio=0.5,
            freeu={},
        ),
        1,
        MODEL,
    )  # fmt: skip
    for part in (
        "Tiling: True", "Guidance rescale: 0.5", "PAG scale: 3", "Guidance end: 0.8", "DeepCache interval: 2",
        "Token merging ratio: 0.5", "FreeU b1: 1.5",
    ):  # fmt: skip
        assert part in used and part.split(":")[0] not in plain
