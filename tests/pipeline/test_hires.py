"""The second pass at a larger size, beside the same made of separate jobs or written out."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sd_core.catalogue import Catalogue, Kind
from sd_core.engine.engine import Engine
from sd_core.errors import InvalidRequest
from sd_core.formats.upscaler import load_upscaler
from sd_core.nested import UPSCALERS, FreeU, Hires
from sd_core.pipeline.hires import LATENT_MODES
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.pipeline.sample import Run
from sd_core.request import Progress, Request
from sd_core.sampling.noise import CPUNoise
from sd_core.volume import Library
from sd_core.work import Context, DecodeWork, EncodeWork, HostTask, TextWork, UNetWork
from tests.support.drive import drive
from tests.support.upscalers import write_upscaler

REQUEST = Request("a cat", seed=3, width=64, height=64, steps=3, sampler="euler_a", schedule="default")
CPU = torch.device("cpu")


def asking(**hires: Any) -> Request:
    return replace(REQUEST, hires=Hires(**{"strength": 0.6, **hires}))


@pytest.fixture(scope="module")
def upscalers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upscalers")
    write_upscaler(folder / "4x-Sharp.pth")
    (folder / "broken.pth").write_bytes(b"no network")
    return folder


@pytest.fixture
def engine(tiny_model: StableDiffusion, upscalers: Path) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=4, library=Library(Catalogue({Kind.UPSCALER: (upscalers,)})))
    yield engine
    engine.close()


def image_of(engine: Engine, request: Request) -> np.ndarray:
    return engine.submit(request).result().images[0]


def test_with_lanczos_it_is_three_jobs_byte_for_byte(engine: Engine) -> None:
    request = asking(scale=1.5, prompt="a dog", steps=4, sampler="ddim", schedule="default", cfg=3.0)
    first = image_of(engine, REQUEST)
    larger = np.array(Image.fromarray(first).resize((96, 96), Image.Resampling.LANCZOS))
    repeated = replace(
        REQUEST, prompt="a dog", image=larger, width=96, height=96, steps=4, strength=0.6, strength_steps="exact",
        sampler="ddim", scale=3.0,
    )  # fmt: skip
    image = image_of(engine, request)
    assert image.shape == (96, 96, 3)
    assert np.array_equal(image, image_of(engine, repeated))
    assert not np.array_equal(image, image_of(engine, replace(repeated, strength_steps="scaled")))


@pytest.mark.parametrize(
    ("sampler", "has_eta"), [("dpm2_a", True), ("heun", False), ("dpmpp_sde", True)], ids=["kept", "dropped", "path"]
)
def test_the_second_pass_has_the_jobs_noise_and_the_options_of_its_own_sampler(
    engine: Engine, sampler: str, has_eta: bool
) -> None:
    job = replace(
        REQUEST, eta=0.5, rng="nv", variation_seed=8, variation_strength=0.3, eta_noise_seed_delta=31337, clip_skip=2
    )
    larger = np.array(Image.fromarray(image_of(engine, job)).resize((96, 96), Image.Resampling.LANCZOS))
    repeated = replace(
        job, image=larger, width=96, height=96, strength=0.6, strength_steps="exact", sampler=sampler,
        eta=0.5 if has_eta else None,
    )  # fmt: skip
    hires = Hires(scale=1.5, strength=0.6, sampler=sampler, schedule="default")
    assert np.array_equal(image_of(engine, replace(job, hires=hires)), image_of(engine, repeated))


def test_the_second_pass_reads_edits_as_a_pass_of_its_own(engine: Engine) -> None:
    """AUTOMATIC1111's rule: numbers from 1 to 2 with a point are parts of the second pass."""
    edited = replace(asking(scale=1.5, steps=4), prompt="a [cat:dog:1.5]")
    first = image_of(engine, replace(REQUEST, prompt="a cat"))
    halfway = asking(scale=1.5, steps=4, prompt="a [cat:dog:1.5]")
    assert np.array_equal(image_of(engine, edited), image_of(engine, halfway))
    assert not np.array_equal(image_of(engine, edited), image_of(engine, asking(scale=1.5, steps=4)))
    assert np.array_equal(first, image_of(engine, replace(REQUEST, prompt="a [cat:dog:1.5]")))


def test_what_is_left_out_is_the_jobs_own(engine: Engine) -> None:
    image = image_of(engine, asking())
    written_out = asking(
        prompt="a cat",
        negative_prompt="",
        steps=3,
        sampler="euler_a",
        schedule="default",
        cfg=7.5,
        width=128,
        height=128,
    )
    assert image.shape == (128, 128, 3) and np.array_equal(image, image_of(engine, written_out))


def network(works: list[Any]) -> Any:
    """Answers with simple numbers and runs what is asked of the host."""

    def answer(work: Any) -> Any:
        works.append(work)
        match work:
            case TextWork(prompts=prompts):
                return tuple(Context(prompt, torch.zeros(1, 3, 2)) for prompt in prompts)
            case UNetWork(latents=latents, contexts=contexts):
                return 0.1 * latents.expand(len(contexts), -1, -1, -1)
            case EncodeWork(pixels=pixels):
                small = F.avg_pool2d(pixels.mean(1, keepdim=True).expand(-1, 4, -1, -1), 8)
                return small, torch.zeros_like(small)
            case DecodeWork(latents=latents):
                return F.interpolate(latents[:, :3], scale_factor=8).tanh()
            case HostTask(run=run):
                return run()

    return answer


def works_of(model: StableDiffusion, request: Request) -> list[Any]:
    works: list[Any] = []
    (picture,) = prepare(request, model).pictures
    drive(picture, network(works))
    return works


@pytest.mark.parametrize("upscaler", LATENT_MODES)
def test_latent_ways_are_their_loops(tiny_model: StableDiffusion, upscaler: str) -> None:
    """The first pass ends, its latents are interpolated, noise of the same seed is added, and `steps` steps follow."""
    request = asking(upscaler=upscaler, scale=1.5, steps=5)
    works = works_of(tiny_model, request)
    assert [type(work) for work in works] == [TextWork] + [UNetWork] * 8 + [DecodeWork]
    alone: list[Any] = []
    (first_pass,) = prepare(REQUEST, tiny_model).pictures
    drive(first_pass, network(alone))
    latents = alone[-1].latents
    mode = {
        "latent": {"mode": "bilinear"},
        "latent_antialiased": {"mode": "bilinear", "antialias": True},
        "latent_bicubic": {"mode": "bicubic"},
        "latent_bicubic_antialiased": {"mode": "bicubic", "antialias": True},
        "latent_nearest": {"mode": "nearest"},
        "latent_nearest_exact": {"mode": "nearest-exact"},
    }[upscaler]
    larger = F.interpolate(latents, size=(12, 12), **mode)
    sigmas = Run("euler_a", "default", int(5 / 0.6), 7.5).grid(tiny_model)[-6:]
    start = larger + CPUNoise(3, (1, 4, 12, 12), CPU).draw() * sigmas[0]
    second = works[4:-1]
    torch.testing.assert_close(second[0].latents, start / (1 + sigmas[0] ** 2) ** 0.5)
    assert len(second) == 5 and works[-1].latents.shape == (1, 4, 12, 12)


def test_sizes_of_another_aspect_are_covered_and_cut(tiny_model: StableDiffusion) -> None:
    """64x64 to 128x96: made 128x128, then 16 rows are cut above and below."""
    works = works_of(tiny_model, asking(upscaler="latent_nearest", width=128, height=96))
    whole = works_of(tiny_model, asking(upscaler="latent_nearest", scale=2.0))
    noises = [CPUNoise(3, (1, 4, rows, 16), CPU).draw() for rows in (12, 16)]
    cut, uncut = (
        (found[4].latents * (1 + sigma**2) ** 0.5 - noise * sigma)
        for found, noise in zip((works, whole), noises, strict=True)
        for sigma in [Run.all_of(asking())[1].grid(tiny_model)[0]]
    )
    torch.testing.assert_close(cut, uncut[..., 2:-2, :], rtol=1e-4, atol=1e-3)


def test_an_upscaler_from_a_file_is_followed_by_lanczos(
    engine: Engine, upscalers: Path, tiny_model: StableDiffusion
) -> None:
    first = image_of(engine, REQUEST)
    larger = upscaled_by(upscalers / "4x-Sharp.pth", first)
    assert larger.shape == (256, 256, 3)
    resized = np.array(Image.fromarray(larger).resize((128, 128), Image.Resampling.LANCZOS))
    repeated = replace(REQUEST, image=resized, width=128, height=128, strength=0.6, strength_steps="exact")
    for name in ("4x-Sharp", "4x-sharp.pth"):
        assert np.array_equal(image_of(engine, asking(upscaler=name)), image_of(engine, repeated))
    assert not np.array_equal(image_of(engine, asking()), image_of(engine, repeated))


@torch.inference_mode()
def upscaled_by(path: Path, image: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    output: Tensor = load_upscaler(path, CPU)(pixels)
    return (output[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_an_unknown_upscaler_is_answered_with_what_is_there(engine: Engine) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.submit(asking(upscaler="4x-Sharpp"))
    text = str(caught.value)
    assert text.startswith("hires.upscaler: '4x-Sharpp' is not here; did you mean '4x-Sharp'?")
    assert all(name in text for name in (*UPSCALERS, "4x-Sharp"))


def test_a_file_that_cannot_be_loaded_fails_its_job_alone(engine: Engine) -> None:
    failing, fine = engine.submit(asking(upscaler="broken")), engine.submit(REQUEST)
    with pytest.raises(InvalidRequest, match=r"the upscaler 'broken\.pth' cannot be used"):
        failing.result()
    assert fine.result().images


def test_progress_counts_both_passes(engine: Engine) -> None:
    reported: list[Progress] = []
    engine.submit(asking(steps=2, sampler="heun", schedule="default"), reported.append).result()
    assert [(progress.step, progress.steps) for progress in reported] == [(step, 5) for step in range(1, 6)]
    assert [progress.percent for progress in reported] == [16, 33, 50, 83, 100]  # 3 calls, then 2 + 1
    assert reported[-1].preview().shape == (16, 16, 3)


def test_passes_of_several_jobs_share_the_forwards_of_their_sizes(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job at the size of the second pass and one with hires run as they run alone."""
    with_hires, large = asking(), replace(REQUEST, seed=9, width=128, height=128, steps=9)
    engine = Engine([tiny_model], max_batch=16)
    alone = [image_of(engine, request) for request in (with_hires, large)]
    futures = [engine.submit(request) for request in (with_hires, large)]
    for future, expected in zip(futures, alone, strict=True):
        image = future.result().images[0]
        assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1
    engine.close()


def test_image_to_image_may_be_followed_by_a_second_pass(engine: Engine) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    first = replace(REQUEST, image=image, strength=0.5)
    larger = np.array(Image.fromarray(image_of(engine, first)).resize((128, 128), Image.Resampling.LANCZOS))
    repeated = replace(REQUEST, image=larger, width=128, height=128, strength=0.6, strength_steps="exact")
    request = replace(first, hires=Hires(strength=0.6))
    assert np.array_equal(image_of(engine, request), image_of(engine, repeated))


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.03, 1e-9, 5e-324])
def test_exact_strength_does_all_steps(tiny_model: StableDiffusion, strength: float) -> None:
    run = Run("euler", "karras", 7, 7.5, strength, is_exact=True)
    grid = run.grid(tiny_model)
    assert len(grid) == 8 and grid[-1] == 0
    assert run.calls(tiny_model) == 7
    if strength == 0.5:
        assert grid == Run("euler", "karras", 14, 7.5).grid(tiny_model)[-8:]
    if strength == 1.0:
        assert grid == Run("euler", "karras", 7, 7.5).grid(tiny_model)


EXTRAS: dict[str, dict[str, Any]] = {
    "tiling": {"tiling": True},
    "freeu": {"freeu": FreeU()},
    "pag": {"pag_scale": 3.0},
    "deepcache": {"deepcache": 3},
    "tome": {"tome_ratio": 0.5},
    "rescale": {"guidance_rescale": 0.7},
    "window": {"guidance_start": 0.5},
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_changes_the_picture_and_not_its_neighbours(engine: Engine, extra: str) -> None:
    plain = replace(REQUEST, width=256, height=128, steps=4)
    changed = replace(plain, **EXTRAS[extra])
    expected, alone = image_of(engine, plain), image_of(engine, changed)
    assert np.abs(alone.astype(int) - expected.astype(int)).max() > 2
    futures = [engine.submit(each) for each in (plain, changed)]
    for future, image in zip(futures, (expected, alone), strict=True):
        assert np.abs(future.result().images[0].astype(int) - image.astype(int)).max() <= 1
