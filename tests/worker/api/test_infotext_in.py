"""Infotexts as other tools write them."""

from dataclasses import dataclass
from typing import Any

import pytest

from sd_core.fields import Record, option
from sd_core.nested import Hires
from sd_core.request import Request
from tests.support.records import plain_record
from worker.api.infotext import infotext
from worker.api.infotext_in import read_infotext, split_infotext
from worker.api.job import Limits, job_record, parse_request

LIMITS = Limits(2**24, {"v1-5-pruned-emaonly": 512})
MODEL = {"name": "tiny", "sha256": None}


@dataclass(frozen=True, kw_only=True)
class Border:
    width: int = option(8, low=0, high=64, label="Border width")
    strength: float = option(0.7, above=0, high=1, label="Denoising strength")


@dataclass(frozen=True)
class Later(Request):
    """Fields as they may come to be."""

    depth: int = option(1, low=1, high=5)
    border: Border | None = option(None)


PLAIN, LATER = plain_record(), job_record(Later)


def read(text: str, record: Record = PLAIN) -> tuple[dict[str, Any], tuple[str, ...]]:
    found = read_infotext(text, record)
    return found.values, found.warnings


def test_a_text_of_the_web_ui() -> None:
    values, warnings = read(
        "a cat, (fluffy:1.2)\non a mat\nNegative prompt: fog\nrain: none\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, "
        'Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, TI hashes: "a: 12, b: 34", Version: v1.10.1'
    )
    assert values == {
        "prompt": "a cat, (fluffy:1.2)\non a mat", "negative_prompt": "fog\nrain: none", "steps": 20, "scale": 7.0,
        "sampler": "dpmpp_2m", "schedule": "karras", "seed": 965400086, "width": 512, "height": 768,
        "model": "v1-5-pruned-emaonly", "rng": "nv",
    }  # fmt: skip
    assert warnings == ("parameters: these labels are unknown and were ignored: Clip skip",)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Sampler: DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("Sampler: DPM++ 2M", ("dpmpp_2m", "karras")),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", ("dpmpp_2m", "karras")),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", ("dpmpp_2m", "default")),
        ("Sampler: Euler a", ("euler_a", "default")),
        ("Sampler: euler_a karras", ("euler_a", "karras")),
        ("Sampler: Euler, Scheduler: Karras", ("euler", "karras")),
        ("Schedule type: Karras", (None, "karras")),
    ],
)
def test_samplers_are_understood_in_every_tools_words(written: str, expected: tuple[str | None, str]) -> None:
    values, warnings = read(f"x\nSteps: 20, {written}, Seed: 1, RNG: CPU")
    assert (values.get("sampler"), values["schedule"]) == expected
    assert warnings == ()


def test_an_unknown_sampler_is_said_and_the_rest_is_used() -> None:
    values, warnings = read("x\nSteps: 20, Sampler: DPM adaptive, Schedule type: Karras, Seed: 1, RNG: CPU")
    assert values == {"prompt": "x", "negative_prompt": "", "steps": 20, "seed": 1, "rng": "cpu"}
    (warning,) = warnings
    assert warning.startswith("parameters: the sampler and its schedule were ignored: sampler is 'DPM adaptive'")


def test_a_schedule_that_its_sampler_cannot_follow_is_said() -> None:
    values, warnings = read("x\nSteps: 20, Sampler: DDIM, Schedule type: Karras, Seed: 1, RNG: CPU")
    assert (values["sampler"], values["schedule"]) == ("ddim", "default")
    (warning,) = warnings
    assert warning.startswith("parameters: the schedule 'Karras' was ignored: sampler ddim has no schedule")


def test_a_text_of_stable_diffusion_cpp() -> None:
    text = (
        "a cat\nNegative prompt: fog\nSteps: 20, CFG scale: 7.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 42, "
        "Size: 512x512, Model: v1-5-pruned-emaonly.safetensors, RNG: cuda, Sampler: euler_a karras, "
        "Version: stable-diffusion.cpp"
    )
    values, warnings = read(text, LATER)
    assert (values["rng"], values["sampler"], values["schedule"], values["scale"]) == ("nv", "euler_a", "karras", 7.0)
    assert warnings == ("parameters: these labels are unknown and were ignored: Guidance",)
    assert parse_request({"parameters": text}, LIMITS).request.model == "v1-5-pruned-emaonly"
    _, warnings = read(text.replace("cuda", "std_default"), LATER)
    assert "parameters: RNG was ignored: 'std_default' is not a random number generator of this worker" in warnings


def test_a_text_of_sd_next_and_forge() -> None:
    values, warnings = read(
        "a cat\nNegative prompt: fog\nSteps: 20, Size: 512x768, Sampler: Euler a, Seed: 5, CFG scale: 6, App: SD.Next, "
        "Version: abc, Pipeline: StableDiffusionPipeline, Operations: txt2img, Model: tiny, Model hash: 12, RNG: CPU"
    )
    assert (values["width"], values["height"], values["sampler"], warnings) == (512, 768, "euler_a", ())
    values, warnings = read(
        "a cat\nSteps: 20, Sampler: Euler, Schedule type: Simple and odd, CFG scale: 1, Distilled CFG Scale: 3.5, "
        "Seed: 5, Size: 512x512, RNG: CPU, Version: f2.0.1v1.10.1, Module 1: some, Beta schedule alpha: 0.6"
    )
    assert values["sampler"] == "euler"
    labels = "Distilled CFG Scale, Module 1, Beta schedule alpha"
    assert warnings[0] == f"parameters: these labels are unknown and were ignored: {labels}"
    assert warnings[1].startswith("parameters: the schedule 'Simple and odd' was ignored: schedule is")


def test_without_the_generators_name_it_was_a_gpus() -> None:
    for text, rng in (("", "nv"), (", RNG: CPU", "cpu"), (", RNG: NV", "nv"), (", rng: gpu", "nv")):
        values, warnings = read(f"x\nSteps: 3, Seed: 1, CFG scale: 2{text}", LATER)
        assert (values["rng"], warnings) == (rng, ())
    assert "rng" not in read("only a prompt", LATER)[0]


def test_a_label_is_read_as_soon_as_a_field_has_it() -> None:
    values, warnings = read("x\nSteps: 3, Seed: 1, Clip skip: 2, Tiling: True, Eta DDIM: 0.5, RNG: CPU", LATER)
    assert (values["clip_skip"], values["tiling"], values["eta"], warnings) == (2, True, 0.5, ())


def test_a_label_that_a_nested_record_shares_is_the_nested_ones_beside_another_of_it() -> None:
    line = "x\nSteps: 3, Seed: 1, Denoising strength: 0.5, RNG: CPU"
    assert read(line, LATER)[0]["strength"] == 0.5
    values, warnings = read(line + ", Border width: 9", LATER)
    assert "strength" not in values
    assert values["border"] == {"strength": 0.5, "width": 9}
    assert warnings == ()
    values, warnings = read(line + ", Border width: 90", LATER)
    assert values["border"] == {"strength": 0.5}
    assert warnings == ("parameters: Border width was ignored: 90 is not a whole number from 0 to 64",)


def test_the_strength_beside_a_second_pass_is_the_second_passs() -> None:
    text = "x\nSteps: 3, Seed: 1, Denoising strength: 0.5, RNG: CPU, Hires upscale: 1.5, Hires upscaler: Latent"
    job = parse_request({"parameters": text}, LIMITS)
    assert job.request.hires == Hires(scale=1.5, upscaler="latent", strength=0.5)
    assert job.warnings == ()


def test_fields_without_a_label_and_nested_records_come_back() -> None:
    job = parse_request(
        {"prompt": "x", "seed": 5, "depth": 3, "hires": {"scale": 1.25}, "rng": "nv", "clip_skip": 2},
        LIMITS, record=LATER,
    )  # fmt: skip
    text = infotext(job, 5, MODEL, LATER)
    assert "Exact fields" in text
    assert "Hires upscale: 1.25" in text
    again = parse_request({"parameters": text, "model": "v1-5-pruned-emaonly"}, LIMITS, record=LATER)
    assert again.request == job.request
    assert again.warnings == ()
    plain = parse_request({"prompt": "x", "hires": {"scale": 1.25}, "rng": "nv"}, LIMITS, record=LATER)
    assert "Exact fields" not in infotext(plain, 5, MODEL, LATER)


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("Steps: many", "parameters: Steps was ignored: 'many' cannot be read"),
        ("Steps: 500", "parameters: Steps was ignored: 500 is not a whole number from 1 to 150"),
        ("Size: 100x64", "parameters: Size was ignored: 100 is not a multiple of 8; the nearest are 96 and 104"),
        ("Size: wide", "parameters: Size was ignored: 'wide' cannot be read"),
        ("CFG scale: nan", "parameters: CFG scale was ignored: nan is not a number from 0 to 50"),
        ("Steps: " + "9" * 5_000, "parameters: Steps was ignored: '9999999999999999999999999999999999999999...'"),
        ('Exact fields: "[1]"', "parameters: Exact fields was ignored: it is not a JSON object"),
        ("Exact fields: {", "parameters: Exact fields was ignored: it is not a JSON object"),
        (
            'Exact fields: "{\\"steps\\": 500}"',
            "parameters: steps was ignored: 500 is not a whole number from 1 to 150",
        ),
        ('Exact fields: "{\\"colour\\": 1}"', "parameters: colour did nothing: it is not available here"),
    ],
)
def test_a_value_that_cannot_be_used_is_said(line: str, warning: str) -> None:
    _, warnings = read(f"x\nSeed: 1, RNG: CPU, CFG scale: 2, {line}")
    assert any(text.startswith(warning) for text in warnings), warnings


def test_many_unknown_labels_make_a_short_warning() -> None:
    _, (warning,) = read("x\nRNG: CPU, " + ", ".join(f"label {index}: 1" for index in range(5_000)))
    assert warning.endswith("label 11 and 4988 more")
    assert len(warning) < 300


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("", "", {})),
        ("a\nb", ("a\nb", "", {})),
        ("a\nNegative prompt: b\nc", ("a", "b\nc", {})),
        ("Negative prompt: b", ("", "b", {})),
        ("a\nA: 1, B: 2", ("a\nA: 1, B: 2", "", {})),
        ("a\nA: 1, B: 2, C: 3\n", ("a", "", {"A": "1", "B": "2", "C": "3"})),
        ("\nA: 1, B: 2, C: 3", ("", "", {"A": "1", "B": "2", "C": "3"})),
        ('A: "x, \\"y\\": z", B: "cut, C: , D:4,: 5, six, E: 6', (
            "", "", {"A": 'x, "y": z', "B": '"cut', "C": "", "D": "4", "E": "6"})),
        ('A: "q" rest, B: 1, C: 2', ("", "", {"A": "q", "B": "1", "C": "2"})),
    ],
)  # fmt: skip
def test_a_text_is_split(text: str, parts: tuple[str, str, dict[str, str]]) -> None:
    assert split_infotext(text) == parts
