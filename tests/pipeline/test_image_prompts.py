"""The image prompts of jobs: which files they need, when they act, and what goes wrong."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sd_core
from sd_core.additions import IPAdapter
from sd_core.catalogue import Catalogue, folders_in
from sd_core.engine.engine import Engine
from sd_core.errors import InvalidRequest
from sd_core.nested import Hires
from sd_core.pipeline.attached import Needs
from sd_core.pipeline.image_prompts import with_references
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prepare import prepare
from sd_core.request import Request
from sd_core.volume import Library
from sd_core.work import Context, ImageWork, UNetWork
from tests.support.drive import drive
from tests.support.ip_adapters import ENCODER, write_adapter, write_encoder
from tests.support.pipeline import network

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
REQUEST = Request("a cat", seed=3, width=64, height=64, steps=4, sampler="euler", schedule="default")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("clip_vision", "ip_adapters"):
        (tmp_path / name).mkdir()
    write_encoder(tmp_path / "clip_vision" / "small.safetensors")
    for layout in ("base", "plus"):
        write_adapter(tmp_path / "ip_adapters" / f"{layout}.bin", layout)
    return tmp_path


@pytest.fixture
def engine(tiny_model: StableDiffusion, folder: Path) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=4, library=Library(Catalogue(folders_in(folder))))
    yield engine
    engine.close()


def showing(*units: dict[str, Any]) -> Request:
    return replace(REQUEST, ip_adapters=tuple(IPAdapter(**{"model": "base", "image": IMAGE, **unit}) for unit in units))


def works_of(model: StableDiffusion, folder: Path, request: Request) -> list[Any]:
    """What the request's one image asks for."""
    library = Library(Catalogue(folders_in(folder)))
    (picture,) = prepare(request, model, None, Needs.of(request, model, library)).pictures

    def answer(work: Any) -> Any:
        return Context(work.key, torch.zeros(1, 2, 3)) if isinstance(work, ImageWork) else network(work)

    return drive(picture, answer)[1]


def acting(works: list[Any]) -> list[list[tuple[Any, float, Any]]]:
    """For each step the key, weight and rows of each image."""
    return [
        [(image.tokens.key, image.weight, image.rows) for image in work.attached.image_prompts]
        for work in works
        if isinstance(work, UNetWork)
    ]


def test_rows_of_negative_prompts_read_no_image(tiny_model: StableDiffusion, folder: Path) -> None:
    works = works_of(tiny_model, folder, showing({"weight": 0.6}))
    encoded = [work for work in works if isinstance(work, ImageWork)]
    image, nothing = encoded
    assert image.pixels is not None and image.pixels.shape == (1, 3, 32, 32) and nothing.pixels is None
    assert acting(works) == [[(None, 0.6, (0,)), (image.key, 0.6, (1,))]] * 4
    assert acting(works_of(tiny_model, folder, replace(showing({"weight": 0.6}), scale=1.0))) == (
        [[(image.key, 0.6, None)]] * 4
    )
    perturbed = replace(showing({}), pag_scale=2.0)
    assert acting(works_of(tiny_model, folder, perturbed))[0] == [(None, 1.0, (0,)), (image.key, 1.0, (1, 2))]


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [(0, 1, [0, 1, 2, 3]), (0.25, 1, [1, 2, 3]), (0.26, 0.75, [2]), (0, 0.5, [0, 1]), (0, 0.2, []), (0.5, 0.2, [])],
)
def test_it_acts_in_its_part_of_the_steps(
    tiny_model: StableDiffusion, folder: Path, start: float, end: float, steps: list[int]
) -> None:
    shown = acting(works_of(tiny_model, folder, showing({"start": start, "end": end})))
    assert [step for step, images in enumerate(shown) if images] == steps


def test_both_passes_of_a_hires_job_read_the_images(tiny_model: StableDiffusion, folder: Path) -> None:
    request = replace(showing({}), hires=Hires(scale=1.5, strength=0.5, upscaler="latent", steps=2))
    works = works_of(tiny_model, folder, request)
    assert all(acting(works)) and len({work.latents.shape for work in works if isinstance(work, UNetWork)}) == 2
    assert sum(isinstance(work, ImageWork) for work in works) == 2


def test_without_an_image_of_its_own_it_takes_the_jobs() -> None:
    request = replace(showing({"image": None}, {}), image=IMAGE[:32, :32])
    own, other = with_references(request, [None, Image.fromarray(IMAGE[::-1])]).ip_adapters
    assert own.image is request.image and np.array_equal(other.image, IMAGE[::-1])


def test_without_weight_nothing_is_read(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    works = works_of(tiny_model, tmp_path / "empty", showing({"weight": 0.0}))
    assert not any(isinstance(work, ImageWork) for work in works)


def test_a_job_with_images_and_one_without_are_what_each_is_alone(engine: Engine) -> None:
    requests = [REQUEST, replace(showing({}, {"model": "plus", "weight": 0.5}), num_images=2), showing({"end": 0.5})]
    alone = [engine.submit(request).result().images for request in requests]
    futures = [engine.submit(request) for request in requests]
    for own, future in zip(alone, futures, strict=True):
        for one, other in zip(own, future.result().images, strict=True):
            assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert len({images[0].tobytes() for images in alone}) == 3


def test_the_library_takes_pictures(tiny_checkpoint: Path, folder: Path) -> None:
    for file in tiny_checkpoint.parent.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    with sd_core.load(folder / tiny_checkpoint.name, device="cpu") as model:
        fields = {"steps": 1, "seed": 1, "sampler": "euler"}
        units = [{"model": "base", "image": picture} for picture in (Image.fromarray(IMAGE), IMAGE)]
        first, second = (model.generate("a cat", ip_adapters=[unit], **fields)[0] for unit in units)
        (plain,) = model.generate("a cat", **fields)
    assert first.tobytes() == second.tobytes() != plain.tobytes()


def spoilt(folder: Path) -> None:
    (folder / "ip_adapters" / "base.bin").write_bytes(b"no adapter")


def without_encoder(folder: Path) -> None:
    (folder / "clip_vision" / "small.safetensors").unlink()


def wrong_encoder(folder: Path) -> None:
    without_encoder(folder)
    write_encoder(folder / "clip_vision" / "other.safetensors", replace(ENCODER, embedding=1024))
    (folder / "clip_vision" / "broken.bin").write_bytes(b"no encoder")


def other_unet(folder: Path) -> None:
    write_adapter(folder / "ip_adapters" / "base.bin", "base", attentions=(32,) * 16)


BAD: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "an unknown name": (
        lambda _: None,
        {"model": "bse"},
        r"\[0\].model: 'bse' is not here; did you mean 'base'\?",
    ),
    "a path": (lambda _: None, {"model": "../ip_adapters/base"}, r"ip_adapters\[0\].model: .* is not here"),
    "a spoilt file": (spoilt, {}, "the IP-Adapter 'base.bin' cannot be used: base.bin is not a complete"),
    "no encoder": (
        without_encoder,
        {},
        "an image encoder is needed, and there is none .* ViT-H/14 .* clip_vision/",
    ),
    "another encoder": (
        wrong_encoder,
        {},
        r"base needs a CLIP image encoder with an embedding of width 48; "
        r"clip_vision/ has broken.bin \(cannot be read\), "
        r"other.safetensors \(a CLIP image encoder with an embedding of width 1024 and hidden states of width 64\)",
    ),
    "another UNet": (other_unet, {}, r"ip_adapters\[0\].model: base is for a UNet of another size than that of tiny"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_an_error_of_its_job_alone(engine: Engine, folder: Path, name: str) -> None:
    spoil, unit, reason = BAD[name]
    spoil(folder)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        engine.submit(showing(unit)).result()
    assert str(folder) not in str(caught.value)
    assert engine.submit(replace(REQUEST, steps=1)).result().images
