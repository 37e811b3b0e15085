"""The folders of files that jobs may name: those that are set, or the usual ones, in a worker that is started."""

import asyncio
import base64
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sd_core.catalogue import FOLDERS, Kind
from sd_core.errors import InvalidRequest
from sd_core.nested import Hires
from sd_core.request import Request
from tests.support.upscalers import write_upscaler
from worker.folders import catalogue_of
from worker.io.metadata import generation_text
from worker.service import run_job
from worker.settings import FOLDER_VARIABLES, Settings, StartupError, read_settings
from worker.startup import start

ENDING = ".safetensors"


def read(tmp_path: Path, **environ: str) -> Settings:
    return read_settings(environ, volume=tmp_path / "volume", workspace=tmp_path / "workspace")


def put(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}{ENDING}").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("kind", list(FOLDERS))
def test_the_usual_folders_are_in_the_weights_directory_beside_it_and_comfyuis(tmp_path: Path, kind: Kind) -> None:
    weights = tmp_path / "volume" / "weights"
    theirs = {Kind.UPSCALER: "upscale_models", Kind.IP_ADAPTER: "ipadapter"}.get(kind, FOLDERS[kind])
    put(weights / FOLDERS[kind], "inside"), put(weights.parent / FOLDERS[kind], "beside")
    put(tmp_path / "volume" / "models" / theirs, "comfy"), put(tmp_path / "workspace" / "models" / theirs, "pod")
    catalogue = catalogue_of(read(tmp_path), [weights])
    assert [entry.name for entry in catalogue.entries(kind)] == ["inside", "beside", "comfy", "pod"]
    assert all(not catalogue.entries(other) for other in FOLDERS if other is not kind)


def test_beside_comfyuis_checkpoints_its_own_names_are_found(tmp_path: Path) -> None:
    put(tmp_path / "models" / "upscale_models", "x4")
    catalogue = catalogue_of(read(tmp_path), [tmp_path / "models" / "checkpoints"])
    assert catalogue.find(Kind.UPSCALER, "x4").folder == tmp_path / "models" / "upscale_models"


def test_a_folder_that_is_set_takes_the_place_of_the_usual_ones_of_its_kind(tmp_path: Path) -> None:
    weights = tmp_path / "w"
    put(weights / "loras", "usual"), put(weights / "vae", "usual")
    one, two = put(tmp_path / "one", "first"), put(tmp_path / "two", "second")
    catalogue = catalogue_of(read(tmp_path, SD_LORAS=f"{one}:{two}"), [weights])
    assert [entry.name for entry in catalogue.entries(Kind.LORA)] == ["first", "second"]
    assert [entry.name for entry in catalogue.entries(Kind.VAE)] == ["usual"]


def test_every_folder_that_is_set_and_missing_is_named(tmp_path: Path) -> None:
    file = put(tmp_path / "one", "x") / f"x{ENDING}"
    environ = {name: f"{tmp_path / 'one'}:{tmp_path / name}" for name in FOLDER_VARIABLES.values()}
    with pytest.raises(StartupError) as caught:
        catalogue_of(read(tmp_path, **{**environ, "SD_LORAS": str(file)}), [tmp_path])
    lines = str(caught.value).splitlines()
    assert lines[0] == "These directories are set and do not exist:"
    assert lines[1] == f"  SD_LORAS: {file}"
    assert set(lines[2:]) == {f"  {name}: {tmp_path / name}" for name in environ if name != "SD_LORAS"}


@pytest.fixture
def settings(tmp_path: Path, tiny_weights: Path) -> Settings:
    weights = shutil.copytree(tiny_weights.parent, tmp_path / "w")
    environ = {"SD_WEIGHTS": str(weights), "SD_OUTPUTS": str(tmp_path / "outputs"), "SD_DEVICE": "cpu"}
    return read_settings({**environ, "SD_UPSCALERS": str(put(tmp_path / "up", "none"))}, tmp_path / "volume", tmp_path)


def test_a_started_worker_finds_files_that_appear_later(tmp_path: Path, settings: Settings) -> None:
    service = start(settings)
    request = Request("a zstyle cat", seed=1, width=64, height=64, steps=1, sampler="euler", schedule="default")
    larger = Request(**{**vars(request), "hires": Hires(upscaler="x4", strength=0.5)})
    with pytest.raises(InvalidRequest, match=r"hires\.upscaler: 'x4' is not here"):
        service.engine.submit(larger)
    before = service.engine.submit(request).result().images[0]
    write_upscaler(tmp_path / "up" / "x4.pth")
    (tmp_path / "w" / "embeddings").mkdir()
    torch.save({"zstyle": torch.randn(2, 64)}, tmp_path / "w" / "embeddings" / "zstyle.pt")
    assert service.engine.submit(larger).result().images[0].shape == (128, 128, 3)
    after = service.engine.submit(request).result()
    assert not np.array_equal(after.images[0], before)
    job = {"prompt": "a zstyle cat", "seed": 1, "steps": 1, "num_images": 2}
    response = asyncio.run(run_job({"input": job}, service))
    hashed = hashlib.sha256((tmp_path / "w" / "embeddings" / "zstyle.pt").read_bytes()).hexdigest()
    for image in response["images"]:
        assert f', TI hashes: "zstyle: {hashed[:12]}", ' in generation_text(base64.b64decode(image))
    service.engine.close()


def test_a_start_with_a_missing_folder_ends_with_one_message(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "up" / f"none{ENDING}").unlink()
    (tmp_path / "up").rmdir()
    with pytest.raises(StartupError, match=r"^These directories are set and do not exist:\n  SD_UPSCALERS: "):
        start(settings)
