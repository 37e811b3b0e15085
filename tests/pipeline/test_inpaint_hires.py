"""A masked image with a hires pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sd_core.errors import InvalidRequest
from sd_core.nested import Hires, Outpaint
from sd_core.pipeline.complete import with_image
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run
from sd_core.pipeline.sizes import resized
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise
from sd_core.work import DecodeWork, EncodeWork, HostTask, UNetWork
from tests.support.pipeline import generate

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
MASK = np.zeros((64, 96), np.uint8)
MASK[16:40, 32:64] = 255
REQUEST = Request(
    "p", seed=11, width=96, height=64, steps=2, sampler="euler", schedule="default", image=IMAGE, mask=MASK,
    mask_blur=0, hires=Hires(upscaler="latent_nearest", scale=2.0, steps=4),
)  # fmt: skip


def test_a_whole_image_is_answered_at_the_larger_size(tiny_model: StableDiffusion) -> None:
    _, image = generate(tiny_model, REQUEST)
    large = resized(MASK, (192, 128))
    assert image.shape == (128, 192, 3)
    assert (image[large == 255] == 191).all()
    assert np.array_equal(image[large == 0], resized(IMAGE, (192, 128))[large == 0])


@pytest.mark.parametrize("upscaler", ["latent_nearest", "lanczos"])
def test_the_second_pass_is_bound_to_the_kept_part(tiny_model: StableDiffusion, upscaler: str) -> None:
    hires = Hires(upscaler=upscaler, scale=2.0, steps=4)
    works, _ = generate(tiny_model, replace(REQUEST, hires=hires))
    seen = [work.latents for work in works if isinstance(work, UNetWork) and work.latents.shape[2:] == (16, 24)]
    assert len(seen) == 4
    source = CPUNoise(REQUEST.seed, (1, 4, 16, 24), torch.device("cpu"))
    if upscaler == "lanczos":
        source.posterior()
    noise = source.initial()
    sigmas = Run.all_of(replace(REQUEST, hires=hires))[1].grid(tiny_model)
    clean = [latents * (1 + sigma**2) ** 0.5 - noise * sigma for latents, sigma in zip(seen, sigmas, strict=False)]
    kept = torch.ones(16, 24, dtype=torch.bool)
    kept[4:10, 8:16] = False
    for later in clean[1:]:
        torch.testing.assert_close(later[..., kept], clean[0][..., kept], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(later[..., ~kept], clean[0][..., ~kept], atol=1e-2)


def test_a_part_is_put_back_where_it_was(tiny_model: StableDiffusion) -> None:
    part = replace(REQUEST, inpaint_area="masked", width=64, height=64, inpaint_padding=8)
    works, image = generate(tiny_model, part)
    assert [work.latents.shape[2:] for work in works if isinstance(work, DecodeWork)] == [(16, 16)]
    assert image.shape == IMAGE.shape
    assert (image[MASK > 0] == 191).all() and np.array_equal(image[MASK == 0], IMAGE[MASK == 0])


def test_a_border_is_enlarged_too(tiny_model: StableDiffusion) -> None:
    request = replace(REQUEST, mask=None, outpaint=Outpaint(left=32))
    _, image = generate(tiny_model, request)
    assert image.shape == (128, 256, 3)
    assert (image[:, :62] == 191).all() and not (image[:, 66:] == 191).all()


def test_a_black_mask_answers_the_enlarged_image(tiny_model: StableDiffusion) -> None:
    works, image = generate(tiny_model, replace(REQUEST, mask=MASK * 0))
    assert [type(work) for work in works] == [HostTask]
    assert np.array_equal(image, resized(IMAGE, (192, 128)))


def test_tiling_reaches_every_work(tiny_model: StableDiffusion) -> None:
    works, _ = generate(tiny_model, replace(REQUEST, tiling=True, hires=Hires(scale=2.0)))
    flags = [work.tiling for work in works if isinstance(work, EncodeWork | DecodeWork)]
    flags += [work.extras.tiling for work in works if isinstance(work, UNetWork)]
    assert len(flags) > 4 and all(flags)


def test_an_aspect_that_would_cut_a_part_is_refused() -> None:
    request = replace(
        REQUEST, image=None, mask=None, inpaint_area="masked", width=64, height=64, hires=Hires(width=128, height=64)
    )
    image, mask = Image.fromarray(IMAGE), Image.fromarray(MASK)
    with pytest.raises(InvalidRequest, match="hires: width and height of another aspect cannot be used"):
        with_image(request, image, mask, None, None, 2**22)
    grown = replace(request, inpaint_area="whole", outpaint=Outpaint(left=1024), hires=Hires(scale=2.0))
    with pytest.raises(InvalidRequest, match="hires: 1088x64 would become 2176x128"):
        with_image(grown, image, mask, 64, 64, 2**22)
