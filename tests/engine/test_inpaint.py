"""Inpainting jobs among others: shared forwards, and nothing but networks on the engine's thread."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sd_core.engine.engine import Engine
from sd_core.engine.kinds.unet import UNetKind
from sd_core.pipeline import inpaint
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Outpaint, Progress, Request

SECONDS = 120
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.zeros((64, 64), np.uint8)
MASK[16:48, 16:48] = 255
PLAIN = Request("a cat", seed=3, width=64, height=64, steps=8, sampler="euler", schedule="default")
MASKED = replace(PLAIN, image=IMAGE, mask=MASK, strength=1.0)


@pytest.fixture
def engine(tiny_model: StableDiffusion) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=4)
    yield engine
    engine.close()


def alone(engine: Engine, request: Request) -> np.ndarray:
    (image,) = engine.submit(request).result(SECONDS).images
    return image


def test_a_masked_job_shares_forwards_with_others_and_its_image_is_that_of_its_solo_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = UNetKind.run

    def counted(self: UNetKind, works: Any) -> Any:
        sizes.append(len(works))
        return run(self, works)

    requests = [PLAIN, MASKED, replace(MASKED, inpaint_area="masked", sampler="dpmpp_2m", scale=1.0)]
    expected = [alone(engine, request) for request in requests]
    monkeypatch.setattr(UNetKind, "run", counted)
    for future, image in zip([engine.submit(request) for request in requests], expected, strict=True):
        found = future.result(SECONDS).images[0]
        assert np.abs(found.astype(int) - image.astype(int)).max() <= 1
    assert max(sizes) == 3


def test_masks_are_prepared_and_images_put_back_off_the_engines_thread(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noted(function: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            threads.append(threading.current_thread().name)
            return function(*arguments, **named)

        return call

    for name in ("blurred", "filled", "mixed", "masked_box"):
        monkeypatch.setattr(inpaint.masks, name, noted(getattr(inpaint.masks, name)))
    alone(engine, replace(MASKED, inpaint_area="masked", inpaint_fill="fill"))
    assert len(threads) == 4
    assert all(name.startswith("host-") for name in threads)


def test_every_image_of_a_job_keeps_what_is_kept(engine: Engine) -> None:
    images = engine.submit(replace(MASKED, num_images=3)).result(SECONDS).images
    assert all(np.array_equal(image[MASK == 0], IMAGE[MASK == 0]) for image in images)
    assert not np.array_equal(images[0], images[1])


def test_a_black_mask_ends_a_job_without_a_forward(engine: Engine) -> None:
    reported: list[Progress] = []
    result = engine.submit(replace(MASKED, mask=MASK * 0, num_images=2), reported.append).result(SECONDS)
    assert all(np.array_equal(image, IMAGE) for image in result.images)
    assert result.timings_ms["denoise"] == result.timings_ms["decode"] == 0 and not reported


def test_an_answer_may_be_larger_than_what_is_generated(engine: Engine) -> None:
    image = np.random.default_rng(1).integers(0, 256, (301, 203, 3), dtype=np.uint8)
    mask = np.zeros((301, 203), np.uint8)
    mask[200:260, 10:50] = 255
    found = alone(engine, replace(MASKED, image=image, mask=mask, inpaint_area="masked", steps=2))
    assert found.shape == (301, 203, 3)
    assert np.array_equal(found[mask == 0], image[mask == 0]) and not np.array_equal(found, image)


def test_progress_and_borders_go_together(engine: Engine) -> None:
    reported: list[Progress] = []
    request = replace(MASKED, mask=None, outpaint=Outpaint(left=64), steps=3)
    image = engine.submit(request, reported.append).result(SECONDS).images[0]
    assert image.shape == (64, 128, 3)
    assert [progress.percent for progress in reported] == [33, 66, 100]
    assert reported[0].preview().shape == (8, 16, 3)


def test_a_failure_on_the_host_fails_its_own_job_alone(engine: Engine) -> None:
    broken = engine.submit(replace(MASKED, mask=MASK[0]))  # not an image
    fine = engine.submit(MASKED)
    assert broken.exception(SECONDS) is not None
    assert fine.result(SECONDS).images
