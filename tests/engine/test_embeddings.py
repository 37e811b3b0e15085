"""Embeddings from files: found without a restart, read off the engine thread, and named by hash in the answer."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sd_core.catalogue import Catalogue, Kind
from sd_core.engine.engine import Engine
from sd_core.errors import InvalidRequest
from sd_core.formats import embedding
from sd_core.pipeline import embeddings
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.volume import Library

REQUEST = Request("a zstyle cat", seed=3, width=64, height=64, steps=2, sampler="euler", schedule="default")


def write(folder: Path, name: str, seed: int = 0, width: int = 128) -> str:
    """An embedding of two vectors; its file's SHA-256."""
    path = folder / f"{name}.safetensors"
    save_file({"emb_params": torch.randn(2, width, generator=torch.Generator().manual_seed(seed))}, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def engine(tiny_model: StableDiffusion, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=4, library=Library(Catalogue({Kind.EMBEDDING: (tmp_path,)})))
    yield engine
    engine.close()


def image_of(engine: Engine, **fields: Any) -> np.ndarray:
    return engine.submit(replace(REQUEST, **fields)).result().images[0]


def test_a_file_is_found_without_a_restart_and_again_when_it_changes(engine: Engine, tmp_path: Path) -> None:
    images = [image_of(engine)]
    write(tmp_path, "zstyle")
    images.append(image_of(engine))
    (tmp_path / "zstyle.safetensors").unlink()
    write(tmp_path, "zstyle", seed=1)
    images.append(image_of(engine))
    (tmp_path / "zstyle.safetensors").unlink()
    assert np.array_equal(image_of(engine), images[0])
    apart = [np.abs(one.astype(int) - other).max() for one, other in pairwise(images)]
    assert min(apart) > 5


def test_a_file_is_the_embedding_that_a_model_can_be_given(
    engine: Engine, tmp_path: Path, tiny_model: StableDiffusion
) -> None:
    write(tmp_path, "zstyle")
    given = tiny_model.with_embeddings([embedding.load_embedding(tmp_path / "zstyle.safetensors")])
    alone = Engine([given], max_batch=4)
    assert np.array_equal(image_of(engine), image_of(alone))
    alone.close()


def test_the_answer_names_the_embeddings_that_prompts_used(engine: Engine, tmp_path: Path) -> None:
    hashes = {name: write(tmp_path, name, seed)[:12] for seed, name in enumerate(("zstyle", "zbad", "zidle", "z:up"))}
    request = replace(REQUEST, prompt="a zstyle cat, zstyle", negative_prompt="zbad, z:up")
    result = engine.submit(request).result()
    assert result.labels == {"TI hashes": f"zstyle: {hashes['zstyle']}, zbad: {hashes['zbad']}, zup: {hashes['z:up']}"}
    assert engine.submit(replace(REQUEST, prompt="a cat", num_images=2)).result().labels == {}


def test_a_broken_file_is_an_error_of_the_job_that_names_it_alone(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, "zwide", width=1024)
    (tmp_path / "zstyle.pt").write_bytes(b"no tensors")
    broken = "prompt: the embedding 'zstyle' cannot be used: zstyle.pt is not"
    for prompt, says in (("a zstyle cat", broken), ("zwide", "prompt: the embedding 'zwide' was made for another")):
        fine, failing = engine.submit(replace(REQUEST, prompt="a cat")), engine.submit(replace(REQUEST, prompt=prompt))
        with pytest.raises(InvalidRequest) as caught:
            failing.result()
        assert str(caught.value).startswith(says) and str(tmp_path) not in str(caught.value)
        assert fine.result().images


def test_a_picture_without_an_embedding_takes_no_word(engine: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "cat.png")
    assert engine.submit(REQUEST).result().images


def test_files_are_read_once_for_all_images_and_not_by_the_engine(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = list[str]()

    def reading(path: Path) -> Any:
        threads.append(threading.current_thread().name)
        return embedding.load_embedding(path)

    monkeypatch.setattr(embeddings, "load_embedding", reading)
    write(tmp_path, "zstyle"), write(tmp_path, "zbad")
    jobs = [engine.submit(replace(REQUEST, num_images=3, seed=seed)) for seed in range(3)]
    assert all(job.result().images for job in jobs)
    assert len(threads) == 2 and all(name.startswith("host-") for name in threads)
