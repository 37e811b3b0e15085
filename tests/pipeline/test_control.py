"""Which control acts where: steps, rows, passes, weights, and what the hints are made of."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sd_core.additions import ControlNet, controlnet_from_text
from sd_core.models.controlnet import ControlNet as ControlNetwork
from sd_core.networks import Guide
from sd_core.pipeline.attaching import Attached
from sd_core.pipeline.control import (
    SOFT_FEATURES,
    Hints,
    Steering,
    hint_image,
    scales_of,
    with_hints,
)
from sd_core.pipeline.images import Frame, Source
from sd_core.preprocessors.preprocess import preprocess
from sd_core.request import Request
from sd_core.work import Attachments, Control, Hint, HintWork, HostTask
from tests.support.controls import controlnet, hint_picture, t2i_adapter
from tests.support.drive import drive

CPU = torch.device("cpu")
REQUEST = Request("a cat", seed=1, width=64, height=64)


@pytest.fixture(scope="module")
def network() -> ControlNetwork:
    return controlnet()


def control(name: str) -> Control:
    return Control(controlnet(key=name), Hint(name, ()), (1.0,))


class TestSteps:
    @pytest.mark.parametrize(
        ("start", "end", "acting"),
        [
            (0.0, 1.0, [0, 1, 2, 3, 4]),
            (0.2, 0.8, [1, 2, 3]),
            (0.3, 0.7, [2]),
            (0.5, 0.5, []),
            (0.0, 0.1, []),
            (0.81, 1.0, []),
        ],
    )
    def test_part_of_the_steps(self, start: float, end: float, acting: list[int]) -> None:
        """A control acts at step i of n unless i / n < start or (i + 1) / n > end."""
        attached = Attached(steering=(Steering(control("a"), start, end),))
        assert [step for step in range(5) if attached.at(step, 5, 2, 1).controls] == acting

    def test_only_where_the_prompt_acts(self) -> None:
        attached = Attached(steering=(Steering(control("a"), prompts_only=True), Steering(control("b"))))
        one, other = attached.at(0, 5, 4, 1).controls
        assert (one.rows, other.rows) == ((1, 2, 3), None)
        assert attached.at(0, 5, 4, 2).controls[0].rows == (2, 3)
        assert attached.at(0, 5, 1, 0).controls[0].rows is None

    def test_what_is_always_attached_stays(self) -> None:
        always = Attachments(adapters=(object(),))
        assert Attached(always).at(0, 5, 2, 1) is always
        assert Attached(always, (Steering(control("a")),)).at(0, 5, 2, 1).adapters == always.adapters


class TestScales:
    def test_balanced(self, network: ControlNetwork) -> None:
        assert scales_of(ControlNet(model="a", weight=0.5), network) == (0.5,) * 13

    @pytest.mark.parametrize("mode", ["prompt", "control"])
    def test_weaker_where_detail_is_finer(self, network: ControlNetwork, mode: str) -> None:
        scales = scales_of(ControlNet(model="a", weight=2.0, mode=mode), network)
        assert scales == pytest.approx([2 * 0.825 ** (12 - index) for index in range(13)])

    def test_a_t2i_adapters_levels(self) -> None:
        assert scales_of(ControlNet(model="a", mode="prompt"), t2i_adapter()) == SOFT_FEATURES
        assert scales_of(ControlNet(model="a", weight=0.5), t2i_adapter()) == (0.5,) * 4


class TestHintImages:
    def test_ready_maps_are_taken_as_they_are(self) -> None:
        image = hint_picture(64, 72)
        made = hint_image(ControlNet(model="a", image=image), None, (72, 64), None)
        assert made.pixels.shape == (3, 64, 72)
        np.testing.assert_array_equal(np.rint(made.pixels.transpose(1, 2, 0) * 255), image)

    def test_images_are_resized_before_they_are_preprocessed(self) -> None:
        image = hint_picture(100, 200)
        unit = ControlNet(model="a", image=image, preprocessor="canny", low=50, high=90)
        made = hint_image(unit, None, (64, 64), None).pixels
        resized = np.asarray(Image.fromarray(image).resize((128, 64), Image.Resampling.LANCZOS))[:, 32:96]
        np.testing.assert_array_equal(made.transpose(1, 2, 0) * 255, preprocess("canny", resized, 50, 90))

    @pytest.mark.parametrize("mode", ["crop", "stretch", "fill"])
    def test_resize_modes(self, mode: str) -> None:
        image = np.zeros((64, 128, 3), np.uint8)
        image[:, 64:] = 255
        made = hint_image(ControlNet(model="a", image=image, resize_mode=mode), None, (64, 64), None).pixels[0]
        assert made.shape == (64, 64)
        assert made[:, :24].max() < 0.1 and made[:, 40:].min() > 0.9

    def test_maps_of_few_colours_are_not_mixed(self) -> None:
        colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
        image = colors[np.random.default_rng(0).integers(0, 3, (50, 50))]
        made = hint_image(ControlNet(model="a", image=image), None, (64, 64), None).pixels
        assert {tuple(color) for color in made.reshape(3, -1).T.tolist()} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}

    def test_the_jobs_own_image(self) -> None:
        image = hint_picture(64, 64)
        own, given = (hint_image(ControlNet(model="a", image=each), image, (64, 64), None) for each in (None, image))
        assert own.key == given.key
        assert own.key != hint_image(ControlNet(model="a", preprocessor="invert"), image, (64, 64), None).key

    def test_a_masked_image(self) -> None:
        """Its own image is what is repainted of it; another one is laid over the sent image and cut out alike."""
        shown, mask = hint_picture(64, 64, 1), np.zeros((64, 64), np.uint8)
        mask[:32] = 255
        frame = Frame(shown, mask, (128, 100), (64, 0, 128, 64))
        own = hint_image(ControlNet(model="a"), hint_picture(100, 128), (64, 64), frame).pixels
        np.testing.assert_array_equal(np.rint(own.transpose(1, 2, 0) * 255), shown)
        other = hint_picture(100, 128, 2)
        cut = hint_image(ControlNet(model="a", image=other), None, (64, 64), frame).pixels
        np.testing.assert_array_equal(np.rint(cut.transpose(1, 2, 0) * 255), other[:64, 64:])
        painted = hint_image(ControlNet(model="a", preprocessor="inpaint"), None, (64, 64), frame).pixels
        assert (painted[:, :32] == -1).all()
        np.testing.assert_array_equal(painted[:, 32:], own[:, 32:])


def embedding(asked: Any) -> Any:
    """Runs host tasks, and answers hints by their key."""
    return asked.run() if isinstance(asked, HostTask) else Hint((asked.network.key, asked.key), (asked.pixels,))


def steered(hints: Hints, guides: list[Guide], run: int = 0, source: Source | None = None) -> tuple[Any, list[Any]]:
    steering: Generator[Any, Any, Any] = hints.steering(guides, run, (64, 64), source, CPU)
    return drive(steering, embedding)


class TestRuns:
    @pytest.mark.parametrize(("option", "runs"), [("both", [0, 1]), ("low", [0]), ("high", [1])])
    def test_passes_of_hires(self, network: ControlNetwork, option: str, runs: list[int]) -> None:
        unit = ControlNet(model="a", image=hint_picture(64, 64), hr_option=option)
        request = replace(REQUEST, controlnets=(unit,), hires=object())
        assert [run for run in (0, 1) if steered(Hints(request), [network], run)[0]] == runs
        alone = replace(request, hires=None)
        assert len(steered(Hints(alone), [network])[0]) == 1

    def test_a_hint_is_made_once_for_all_images(self, network: ControlNetwork) -> None:
        hints = Hints(replace(REQUEST, controlnets=(ControlNet(model="a", image=hint_picture(64, 64)),)))
        (_, first), (_, again) = steered(hints, [network]), steered(hints, [network])
        assert first[0].run is again[0].run
        assert isinstance(first[1], HintWork) and first[1].key == again[1].key
        assert first[1].pixels.shape == (1, 3, 64, 64)

    def test_without_weight_nothing_is_asked(self, network: ControlNetwork) -> None:
        unit = ControlNet(model="a", image=hint_picture(64, 64), weight=0.0)
        assert steered(Hints(replace(REQUEST, controlnets=(unit,))), [network]) == ((), [])

    def test_networks_that_read_style_act_on_prompts_alone(self) -> None:
        pooled = controlnet()
        pooled.pooled = True
        request = replace(REQUEST, controlnets=(ControlNet(model="a", image=hint_picture(64, 64)),))
        ((steering,), _) = steered(Hints(request), [pooled])
        assert steering.prompts_only


@pytest.mark.parametrize(("size", "warned"), [((128, 128), False), ((65, 64), False), ((96, 64), True)])
def test_another_aspect_is_said(size: tuple[int, int], warned: bool) -> None:
    request = replace(REQUEST, controlnets=(ControlNet(model="a"), ControlNet(model="b")))
    made, warnings = with_hints(request, [None, Image.new("RGB", size)])
    assert [None if unit.image is None else unit.image.shape for unit in made.controlnets] == [None, (*size[::-1], 3)]
    assert warnings == (["controlnets[1].image: 96x64 pixels became 64x64 (resize_mode crop)"] if warned else [])


def test_texts_are_read_back() -> None:
    unit = ControlNet(
        model="canny [d14c016b]", weight=0.7, start=0.1, end=0.9, mode="control", preprocessor="canny", low=90.5
    )
    read = controlnet_from_text(unit.to_text())
    assert read["model"] == unit.model and read["low"] == 90.5 and "high" not in read
    assert read["mode"] == "ControlNet is more important"


@pytest.mark.parametrize("text", ["", "Module: canny", "Model: a, Weight: heavy"])
def test_texts_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError):
        controlnet_from_text(text)
