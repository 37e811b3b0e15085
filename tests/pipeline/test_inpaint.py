"""A masked image: what is repainted of it, what its coroutine asks for, and what comes back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sd_core.pipeline.inpaint import canvas_of, masked
from sd_core.pipeline.masks import blurred
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.pipeline.sizes import resized
from sd_core.request import Outpaint, Request
from sd_core.sampling.noise import CPUNoise
from sd_core.work import DecodeWork, EncodeWork, HostTask, TextWork, UNetWork
from tests.support.pipeline import generate

CPU = torch.device("cpu")
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
MASK = np.zeros((64, 96), np.uint8)
MASK[16:40, 32:64] = 255
REQUEST = Request(
    "p", seed=11, width=96, height=64, steps=2, sampler="euler", schedule="default", image=IMAGE, mask=MASK
)
GENERATED = np.full((64, 96, 3), 7, np.uint8)


def test_a_whole_image_is_repainted_with_a_soft_mask_and_put_back_with_the_sent_one() -> None:
    canvas = canvas_of(REQUEST)
    assert np.array_equal(canvas.image, IMAGE) and np.array_equal(canvas.shown, IMAGE)
    assert np.array_equal(canvas.mask, blurred(MASK, 4, 4)) and canvas.mask[15, 40] > 0
    answer = canvas.put_back(GENERATED)
    assert (answer[MASK > 0] == 7).all()
    assert np.array_equal(answer[MASK == 0], IMAGE[MASK == 0])


def test_gray_levels_of_a_mask_mix() -> None:
    soft = np.full_like(MASK, 51)
    answer = canvas_of(replace(REQUEST, mask=soft, mask_blur=0)).put_back(GENERATED)
    assert np.abs(answer - (IMAGE * 0.8 + 7 * 0.2)).max() <= 0.5


def test_each_direction_has_its_blur() -> None:
    canvas = canvas_of(replace(REQUEST, mask_blur=4, mask_blur_x=0))
    assert np.array_equal(canvas.mask, blurred(MASK, 0, 4))
    assert np.array_equal(canvas_of(replace(REQUEST, mask_blur_y=9)).mask, blurred(MASK, 4, 9))


def test_an_inverted_mask_repaints_the_rest() -> None:
    answer = canvas_of(replace(REQUEST, mask_invert=True)).put_back(GENERATED)
    assert (answer[MASK == 0] == 7).all()
    assert np.array_equal(answer[MASK > 0], IMAGE[MASK > 0])


@pytest.mark.parametrize("fill", ["fill", "latent_noise", "latent_nothing"])
def test_the_masked_part_is_filled_before_it_is_encoded(fill: str) -> None:
    canvas = canvas_of(replace(REQUEST, inpaint_fill=fill))
    assert not np.array_equal(canvas.image[20:36, 36:60], IMAGE[20:36, 36:60])
    assert np.array_equal(canvas.image[canvas.mask == 0], IMAGE[canvas.mask == 0])
    assert np.array_equal(canvas.shown, IMAGE)


PART = replace(REQUEST, inpaint_area="masked", width=64, height=64, inpaint_padding=8, mask_blur=0)


def test_only_the_masked_box_is_repainted_and_put_back_into_the_sent_image() -> None:
    canvas = canvas_of(PART)
    assert canvas.box == (24, 4, 72, 52)
    assert np.array_equal(canvas.image, resized(IMAGE[4:52, 24:72], (64, 64)))
    assert np.array_equal(canvas.mask, resized(MASK[4:52, 24:72], (64, 64)))
    answer = canvas.put_back(np.full((64, 64, 3), 7, np.uint8))
    assert answer.shape == IMAGE.shape
    assert (answer[MASK > 0] == 7).all()
    assert np.array_equal(answer[MASK == 0], IMAGE[MASK == 0])


def test_the_generated_part_lands_where_it_was_cut_out() -> None:
    canvas = canvas_of(replace(PART, mask=np.full_like(MASK, 255), width=128, height=128))
    assert canvas.box == (0, 0, 96, 64)
    # The box cannot be square, so the generated square has a border that is cut off again.
    assert canvas.shown.shape == (128, 128, 3)
    x, y = np.meshgrid(np.linspace(0, 255, 96), np.linspace(0, 255, 64))
    smooth = np.dstack([x, y, 255 - y]).round().astype(np.uint8)
    again = canvas.put_back(canvas_of(replace(PART, image=smooth, mask=canvas.opaque, width=128, height=128)).shown)
    assert np.abs(again.astype(int) - smooth)[2:-2, 2:-2].max() <= 4


def test_a_border_is_painted_and_the_old_part_kept() -> None:
    request = replace(REQUEST, mask=None, outpaint=Outpaint(left=16, top=8))
    assert request.generated_size == (112, 72)
    canvas = canvas_of(request)
    assert canvas.image.shape == (72, 112, 3) and (canvas.opaque[:8] == 255).all()
    answer = canvas.put_back(np.full((72, 112, 3), 7, np.uint8))
    assert np.array_equal(answer[8:, 16:], IMAGE)
    assert (answer[:8] == 7).all() and (answer[:, :16] == 7).all()


def test_a_border_comes_with_a_mask_whose_inversion_is_its_own() -> None:
    request = replace(REQUEST, mask_invert=True, outpaint=Outpaint(right=8))
    answer = canvas_of(request).put_back(np.full((64, 104, 3), 7, np.uint8))
    assert (answer[:, 96:] == 7).all() and (answer[:, :96][MASK == 0] == 7).all()
    assert np.array_equal(answer[:, :96][MASK > 0], IMAGE[MASK > 0])


def test_a_border_of_a_part_keeps_the_sent_size() -> None:
    request = replace(PART, image=IMAGE[:63, :95], mask=None, outpaint=Outpaint(right=8))
    assert request.generated_size == (64, 64)
    answer = canvas_of(request).put_back(np.full((64, 64, 3), 7, np.uint8))
    assert answer.shape == (63, 103, 3)
    assert np.array_equal(answer[:, :95], IMAGE[:63, :95]) and (answer[:, 95:] == 7).all()


def test_a_mask_of_one_pixel_repaints_one_pixel() -> None:
    one = np.zeros_like(MASK)
    one[30, 50] = 255
    for request in (replace(REQUEST, mask=one, mask_blur=64), replace(PART, mask=one, inpaint_padding=0)):
        canvas = canvas_of(request)
        answer = canvas.put_back(np.full((*canvas.mask.shape, 3), 7, np.uint8))
        assert (answer[30, 50] == 7).all()
        assert np.array_equal(answer[one == 0], IMAGE[one == 0])


def test_a_source_on_a_device_has_the_masks_levels() -> None:
    canvas = canvas_of(REQUEST)
    source = canvas.source("original", CPU, shows_kept=False)
    assert source.mask is not None and source.mask.shape == (1, 1, 64, 96)
    assert torch.equal((source.mask[0, 0] * 255).round().to(torch.uint8), torch.from_numpy(canvas.mask))
    assert source.kept is None
    kept = canvas.source("original", CPU, shows_kept=True).kept
    assert kept is not None
    assert (kept[0, :, canvas.mask >= 128] == 0).all() and not (kept[0, :, canvas.mask < 128] == 0).all()


def key_of(**changes: Any) -> Any:
    return canvas_of(replace(REQUEST, **changes)).source("original", CPU, shows_kept=False).key


def test_sources_of_other_images_or_masks_have_other_keys() -> None:
    assert key_of() == key_of(image=IMAGE.copy())
    assert len({key_of(), key_of(image=255 - IMAGE), key_of(mask_blur=0), key_of(inpaint_fill="fill")}) == 4


def draws(count: int, shape: tuple[int, ...] = (1, 4, 8, 12)) -> list[torch.Tensor]:
    source = CPUNoise(REQUEST.seed, shape, CPU)
    return [source.draw() for _ in range(count)]


def test_the_host_prepares_and_finishes(tiny_model: StableDiffusion) -> None:
    works, image = generate(tiny_model, REQUEST)
    assert [type(work) for work in works] == [HostTask, TextWork, EncodeWork] + [UNetWork] * 1 + [DecodeWork]
    assert (image[MASK > 0] == 191).all() and np.array_equal(image[MASK == 0], IMAGE[MASK == 0])


def test_all_images_of_a_job_share_one_canvas(tiny_model: StableDiffusion) -> None:
    pictures = prepare(replace(REQUEST, num_images=3), tiny_model).pictures
    tasks = [next(picture) for picture in pictures]
    first, *others = [task.run() for task in tasks]
    assert all(other is first for other in others)


@pytest.mark.parametrize("change", [{}, {"mask_invert": True, "mask": MASK * 0 + 255}, {"inpaint_area": "masked"}])
def test_a_black_mask_answers_the_sent_image_and_generates_nothing(
    tiny_model: StableDiffusion, change: dict[str, Any]
) -> None:
    works, image = generate(tiny_model, replace(REQUEST, **{"mask": MASK * 0, **change}))
    assert [type(work) for work in works] == [HostTask]
    assert np.array_equal(image, IMAGE) and image is not IMAGE


def test_a_white_mask_repaints_everything(tiny_model: StableDiffusion) -> None:
    assert (generate(tiny_model, replace(REQUEST, mask=MASK * 0 + 255))[1] == 191).all()


def first_latents(model: StableDiffusion, **changes: Any) -> torch.Tensor:
    """The latents that the sampler starts from, as the UNet sees them, without the noise of the first level."""
    request = replace(REQUEST, strength=1.0, mask_blur=0, sampler="ddim", **changes)
    works, _ = generate(model, request)
    seen = next(work for work in works if isinstance(work, UNetWork)).latents
    alpha = float(np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)[:502] ** 2))
    _, start = draws(2)
    return (seen - (1 - alpha) ** 0.5 * start) / alpha**0.5


def test_what_the_masked_latents_start_from(tiny_model: StableDiffusion) -> None:
    posterior, start = draws(2)
    clean = (5 + posterior) * tiny_model.networks.vae.config.scale_factor
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[2:5, 4:8] = True
    expected: dict[str, Callable[[], torch.Tensor]] = {
        "original": lambda: clean,
        "fill": lambda: clean,
        "latent_noise": lambda: torch.where(inside, start, clean),
        "latent_nothing": lambda: torch.where(inside, torch.zeros_like(clean), clean),
    }
    for fill, latents in expected.items():
        torch.testing.assert_close(first_latents(tiny_model, inpaint_fill=fill), latents(), atol=1e-4, rtol=1e-4)


def test_latents_are_resized_from_the_sent_size(tiny_model: StableDiffusion) -> None:
    request = replace(REQUEST, mask=None, resize_mode="latent", width=192, height=64, steps=1, strength=1.0)
    works, image = generate(tiny_model, request)
    encode, first = works[1], works[2]
    assert encode.pixels.shape == (1, 3, 64, 96) and first.latents.shape == (1, 4, 8, 24)
    assert image.shape == (64, 192, 3)
    source = CPUNoise(REQUEST.seed, (1, 4, 8, 12), CPU)
    latents = (5 + source.draw()) * tiny_model.networks.vae.config.scale_factor
    wide = torch.nn.functional.interpolate(latents, (8, 24), mode="bilinear")
    sigma = 14.614641
    seen = first.latents * (1 + sigma**2) ** 0.5 - source.draw((1, 4, 8, 24)) * sigma
    torch.testing.assert_close(seen, wide, atol=1e-4, rtol=1e-4)


def test_a_mask_goes_with_resized_latents(tiny_model: StableDiffusion) -> None:
    request = replace(REQUEST, resize_mode="latent", width=192, height=128)
    works, image = generate(tiny_model, request)
    assert works[2].pixels.shape == (1, 3, 64, 96)
    large = resized(MASK, (192, 128))
    assert (image[large == 255] == 191).all()
    assert np.array_equal(image[large == 0], resized(IMAGE, (192, 128))[large == 0])


def test_the_masked_request_needs_no_device_if_nothing_is_repainted() -> None:
    assert masked(replace(REQUEST, mask=MASK * 0), CPU, shows_kept=True).source is None
