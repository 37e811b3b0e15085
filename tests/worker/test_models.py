"""Two checkpoints of different native size in one worker: each job names one, and is validated against it."""

import asyncio
import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from worker.service import Service, run_job
from worker.settings import read_settings
from worker.startup import start


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("volume")
    weights = Path(shutil.copytree(tiny_weights.parent, folder / "weights"))
    tensors = {name: 1.01 * tensor for name, tensor in load_file(tiny_weights).items()}
    save_file(tensors, weights / "large.safetensors", {"sd_core.native_size": "128"})
    environ = {
        "SD_WEIGHTS": str(weights),
        "SD_CHECKPOINT": "tiny:large.safetensors",
        "SD_OUTPUTS": str(folder / "outputs"),
        "SD_MAX_PIXELS": str(4 * 64 * 64),
        "SD_DEVICE": "cpu",
    }
    service = start(read_settings(environ))
    yield service
    service.engine.close()


def run(service: Service, **fields: Any) -> dict[str, Any]:
    return asyncio.run(run_job({"input": {"prompt": "a cat", "steps": 2, "seed": 1, **fields}}, service))


def image_of(response: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(response["image"]))))


def test_jobs_use_the_model_that_they_name_at_its_own_size(service: Service) -> None:
    for fields, name, side in (
        ({}, "tiny", 64),
        ({"model": "large"}, "large", 128),
        ({"model": "large.safetensors [abcdef0123]"}, "large", 128),
        ({"model": "tiny"}, "tiny", 64),
    ):
        response = run(service, **fields)
        assert response["message"] == "success", response
        assert response["model"]["name"] == response["parameters"]["model"] == name
        assert image_of(response).shape == (side, side, 3)
    sized = {"width": 64, "height": 64}
    assert not np.array_equal(image_of(run(service, **sized)), image_of(run(service, **sized, model="large")))


def test_the_size_is_validated_against_the_model_that_is_named(service: Service) -> None:
    assert run(service, num_images=4)["message"] == "success"
    refused = run(service, model="large", num_images=4)
    assert refused["error_code"] == "invalid_input" and "128 x 128 x 4" in refused["error"]


def test_an_unknown_model_is_answered_with_the_nearest(service: Service) -> None:
    refused = run(service, model="larger")
    assert refused["error_code"] == "invalid_input" and "large" in refused["error"]
    assert json.dumps(refused)
