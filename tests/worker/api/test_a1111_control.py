"""Units of sd-webui-controlnet in bodies of A1111's API, and the texts that they leave in infotexts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sd_core.additions import ControlNet
from sd_core.errors import InvalidRequest
from worker.api.a1111 import translate
from worker.api.infotext import infotext
from worker.api.job import JOB, Job, Limits, parse_request

LIMITS = Limits(2**24, {"tiny": 64})
MODEL = {"name": "tiny", "sha256": None}

# What webuiapi and the extension's own page send with every unit.
UNIT: dict[str, Any] = {
    "enabled": True,
    "module": "canny",
    "model": "control_v11p_sd15_canny [d14c016b]",
    "weight": 0.8,
    "image": "aGk=",
    "mask": None,
    "resize_mode": "Resize and Fill",
    "low_vram": False,
    "processor_res": 512,
    "threshold_a": 90,
    "threshold_b": 180,
    "guidance_start": 0.1,
    "guidance_end": 0.9,
    "control_mode": 2,
    "pixel_perfect": True,
    "hr_option": "Low res only",
    "save_detected_map": True,
    "advanced_weighting": None,
    "union_control_type": "Unknown",
}


def parse(*units: Any, script: str = "controlnet", **fields: Any) -> Job:
    body = {"prompt": "a cat", "alwayson_scripts": {script: {"args": list(units)}}, **fields}
    return parse_request(body, LIMITS)


def problem(*units: Any, **fields: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        parse(*units, **fields)
    return str(caught.value)


@pytest.mark.parametrize("script", ["controlnet", "ControlNet"])
def test_a_unit(script: str) -> None:
    job = parse(UNIT, script=script)
    assert job.request.controlnets == (
        ControlNet(
            model="control_v11p_sd15_canny [d14c016b]",
            weight=0.8,
            start=0.1,
            end=0.9,
            mode="control",
            preprocessor="canny",
            low=90,
            high=180,
            resize_mode="fill",
            hr_option="low",
        ),
    )
    assert job.hint_sources == ("aGk=",)
    assert job.warnings == ()


@pytest.mark.parametrize(
    ("name", "value", "field", "meant"),
    [
        ("resize_mode", 0, "resize_mode", "stretch"),
        ("resize_mode", 1, "resize_mode", "crop"),
        ("resize_mode", "Just Resize", "resize_mode", "stretch"),
        ("control_mode", 0, "mode", "balanced"),
        ("control_mode", "My prompt is more important", "mode", "prompt"),
        ("hr_option", "Both", "hr_option", "both"),
        ("hr_option", 2, "hr_option", "high"),
        ("module", "None", "preprocessor", "none"),
        ("module", "tile_resample", "preprocessor", "tile"),
        ("module", "invert (from white bg & black line)", "preprocessor", "invert"),
        ("threshold_a", -1, "low", None),
        ("guessmode", True, "mode", "control"),
    ],
)
def test_spellings(name: str, value: Any, field: str, meant: Any) -> None:
    (unit,) = parse({**UNIT, "control_mode": 0, name: value}).request.controlnets
    assert getattr(unit, field) == meant


def test_thresholds_that_the_preprocessor_does_not_use_are_left_out() -> None:
    (unit,) = parse({**UNIT, "module": "none", "threshold_a": 512, "threshold_b": 0.5}).request.controlnets
    assert (unit.low, unit.high) == (None, None)


def test_an_image_with_a_mask_beside_it() -> None:
    job = parse(
        {**UNIT, "image": {"image": "aGk=", "mask": None}}, {**UNIT, "image": {"image": "aGk=", "mask": "eW8="}}
    )
    assert job.hint_sources == ("aGk=", "aGk=")
    assert job.warnings == ("alwayson_scripts.controlnet.args: not understood here: image.mask",)
    assert parse({**{k: v for k, v in UNIT.items() if k != "image"}, "input_image": "aGk="}).hint_sources == ("aGk=",)


def test_units_that_do_nothing() -> None:
    job = parse({**UNIT, "enabled": False}, None, False, {**UNIT, "model": "None"}, {})
    assert job.request.controlnets == ()
    assert job.warnings == (
        "alwayson_scripts.controlnet.args[3] did nothing: it names no model",
        "alwayson_scripts.controlnet.args[4] did nothing: it names no model",
        "fields that ask for nothing here: alwayson_scripts.controlnet",
    )


def test_what_is_unknown_is_named_in_one_warning() -> None:
    job = parse({**UNIT, "effective_region_mask": "aGk=", "ipadapter_input": ["x"], "advanced_weighting": [1.0]})
    names = "advanced_weighting, effective_region_mask, ipadapter_input"
    assert job.warnings == (f"alwayson_scripts.controlnet.args: not understood here: {names}",)


def test_problems() -> None:
    assert "controlnets[0].module: 'openpose_full' is not one of none, canny" in problem(
        {**UNIT, "module": "openpose_full"}
    )
    assert "controlnets[0].weight: 3 is not a number from 0 to 2" in problem({**UNIT, "weight": 3})
    assert "at most 3 are allowed" in problem(UNIT, UNIT, UNIT, UNIT)
    assert "controlnets[0].image: is required, because the job has no image" in problem({**UNIT, "image": None})
    assert "args[0]: 'canny' is not an object of fields" in problem("canny")
    assert "inpaint needs a mask or outpaint" in problem({**UNIT, "module": "inpaint_only"})
    assert "two ways to ask for one thing" in problem(UNIT, controlnets=[{"model": "a", "image": "aGk="}])
    with pytest.raises(InvalidRequest, match="is not a list of units"):
        translate({"alwayson_scripts": {"controlnet": {"args": "canny"}}}, JOB)


def test_with_an_image_the_hint_may_be_left_out() -> None:
    assert parse({**UNIT, "image": None}, init_images=["aGk="]).hint_sources == (None,)


class TestInfotext:
    def text(self, **unit: Any) -> str:
        made = parse({**UNIT, **unit}, {**UNIT, "module": "none", "weight": 1})
        return infotext(made, 3, MODEL)

    def test_it_is_the_extensions(self) -> None:
        assert (
            'ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 0.8, '
            "Resize Mode: Resize and Fill, Threshold A: 90, Threshold B: 180, Guidance Start: 0.1, Guidance End: 0.9, "
            'Control Mode: ControlNet is more important, Hr Option: Low res only"'
        ) in self.text()
        assert "Exact fields" not in self.text()

    def test_it_is_read_with_the_control_images_that_are_sent_again(self) -> None:
        made = parse(UNIT, {**UNIT, "module": "none", "weight": 1})
        again = parse_request(
            {"parameters": self.text(), "controlnets": [{"image": "aGk="}, {"image": "eW8="}]}, LIMITS
        )
        assert again.request.controlnets == made.request.controlnets
        assert again.hint_sources == ("aGk=", "eW8=")
        assert again.warnings == ()

    def test_an_entry_with_a_model_of_its_own_is_taken_as_it_is(self) -> None:
        sent = [{"model": "other", "image": "aGk="}]
        again = parse_request({"parameters": self.text(), "controlnets": sent}, LIMITS)
        assert again.request.controlnets == (ControlNet(model="other"),)

    def test_without_them_it_is_said(self) -> None:
        again = parse_request({"parameters": self.text()}, LIMITS)
        assert again.request.controlnets == ()
        assert again.warnings == (
            "parameters: controlnets was ignored: send the images again, as controlnets[0].image",
        )

    def test_a_text_of_the_web_ui(self) -> None:
        text = (
            "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, RNG: CPU, "
            'ControlNet 0: "Module: canny, Model: canny [d14c016b], Weight: 1, Resize Mode: Crop and Resize, '
            "Low Vram: False, Processor Res: 512, Threshold A: -1, Threshold B: 200, Guidance Start: 0, "
            'Guidance End: 1, Pixel Perfect: True, Control Mode: Balanced, Hr Option: Both, Save Detected Map: True"'
        )
        job = parse_request({"parameters": text, "controlnets": [{"image": "aGk="}]}, LIMITS)
        assert job.request.controlnets == (ControlNet(model="canny [d14c016b]", preprocessor="canny", high=200),)

    def test_the_object_of_a_response_is_read_alike(self) -> None:
        recorded = {"prompt": "a cat", "controlnets": [{"model": "canny", "weight": 0.5}]}
        job = parse_request({"parameters": recorded, "controlnets": [{"image": "aGk="}]}, LIMITS)
        assert job.request.controlnets == (ControlNet(model="canny", weight=0.5),)
        assert parse_request({"parameters": recorded}, LIMITS).request.controlnets == ()

    def test_a_broken_text_is_said(self) -> None:
        text = self.text().replace("Weight: 0.8", "Weight: heavy")
        job = parse_request({"parameters": text, "controlnets": [{"model": "a", "image": "aGk="}]}, LIMITS)
        assert any("ControlNet 0 was ignored" in warning for warning in job.warnings)


def test_a_job_with_images_is_described_without_them() -> None:
    job = parse(UNIT)
    units = (replace(job.request.controlnets[0], image=np.zeros((64, 64, 3), np.uint8)),)
    job = replace(job, request=replace(job.request, controlnets=units))
    assert "ControlNet 0" in infotext(job, 3, MODEL)
