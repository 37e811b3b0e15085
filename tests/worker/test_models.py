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
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sd_core.formats.keys import VAE_PREFIX
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


def picture(response: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(response["image"])))


def image_of(response: dict[str, Any]) -> np.ndarray:
    return np.asarray(picture(response))


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


def test_a_checkpoint_that_appears_later_is_loaded_when_a_job_names_it(service: Service, tiny_weights: Path) -> None:
    weights = service.identities["tiny"].path.parent
    tensors = {name: 1.02 * tensor for name, tensor in load_file(tiny_weights).items()}
    digest = "ab" * 32
    save_file(tensors, weights / "new.safetensors", {"sd_core.native_size": "96", "sd_core.source_sha256": digest})
    response = run(service, model="new")
    assert image_of(response).shape == (96, 96, 3), response
    assert response["model"] == {"name": "new", "sha256": digest}
    assert (
        "Model hash: ababababab, Model: new"
        in Image.open(io.BytesIO(base64.b64decode(response["image"]))).info["parameters"]
    )
    assert run(service, model="new", width=64, height=64, num_images=5)["error_code"] == "invalid_input"
    (weights / "new.safetensors").unlink()
    gone = run(service, model="new")
    assert gone["error_code"] == "invalid_input" and "model: " in gone["error"]


def test_a_file_that_is_no_checkpoint_is_one_clear_error(service: Service) -> None:
    weights = service.identities["tiny"].path.parent
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(4, 4)}, weights / "wrong.safetensors")
    refused = run(service, model="wrong", steps=0)
    (weights / "wrong.safetensors").unlink()
    assert refused["error_code"] == "invalid_input"
    assert "model: 'wrong.safetensors' cannot be used" in refused["error"] and "steps" in refused["error"]


def test_a_vae_is_named_in_a_job_and_in_the_record_of_its_image(service: Service) -> None:
    weights = service.identities["tiny"].path.parent
    tensors = load_file(weights / "large.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(VAE_PREFIX)}
    (weights / "vae").mkdir()
    save_file(tensors, weights / "vae" / "soft.safetensors")
    plain, soft = run(service), run(service, vae="soft.safetensors")
    assert not np.array_equal(image_of(plain), image_of(soft)), soft
    text = picture(soft).info["parameters"]
    assert "VAE: soft" in text
    again = run(service, parameters=text)
    assert np.array_equal(image_of(again), image_of(soft)) and again["warnings"] == []
    elsewhere = run(service, parameters=text.replace("VAE: soft", "VAE: sharp"))
    assert "parameters: the vae was ignored: 'sharp.safetensors' is not here" in elsewhere["warnings"]
    body = {"override_settings": {"sd_vae": "soft", "sd_model_checkpoint": "tiny"}}
    assert np.array_equal(image_of(run(service, **body)), image_of(soft))
    assert run(service, vae="sharp")["error_code"] == "invalid_input"
    assert np.array_equal(image_of(run(service, vae="Automatic")), image_of(plain))


def test_an_unknown_model_is_answered_with_the_nearest(service: Service) -> None:
    refused = run(service, model="larger")
    assert refused["error_code"] == "invalid_input" and "large" in refused["error"]
    assert json.dumps(refused)
