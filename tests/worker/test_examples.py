"""The examples in docs/api.md: there is one of every field, and the handler runs each on the demo model."""

import asyncio
import base64
import gc
import importlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from sd_core.fields import Record
from sd_core.formats.detect import NUM_HEADS_KEY
from sd_core.formats.keys import VAE_PREFIX
from sd_core.models.controlnet import ControlNetConfig
from sd_core.models.ip_adapter import attention_widths
from sd_core.pipeline.model import StableDiffusion
from tests.support.controls import random_controlnet, write_guide
from tests.support.ip_adapters import write_adapter, write_encoder
from tests.support.loras import write_lora
from tests.support.pictures import data_uri
from worker.api.docs import PAGE
from worker.api.job import JOB

WEIGHTS = Path(__file__).resolve().parents[2] / "demo" / "weights"
BLOCK = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Words of the page that a caller replaces -> what they are here.
STANDS_FOR = {
    "<base64 of an image>": data_uri(Image.linear_gradient("L").resize((64, 64)).convert("RGB")),
    "<base64 of a mask>": data_uri(Image.radial_gradient("L").resize((64, 64)).convert("RGB")),
    "v1-5-pruned-emaonly": "demo",
}
QUICK = {"steps": 2, "width": 64, "height": 64}


def examples() -> list[dict[str, Any]]:
    """The inputs of the jobs on the page."""
    page = PAGE.read_text(encoding="utf-8")
    for word, meant in STANDS_FOR.items():
        page = page.replace(json.dumps(word), json.dumps(meant))
    objects = [each for block in BLOCK.findall(page) for each in objects_in(block)]
    return [each["input"] for each in objects if "input" in each]


def objects_in(block: str) -> Iterator[dict[str, Any]]:
    """A block's JSON objects: one, or several one after another."""
    while block := block.strip():
        found, end = json.JSONDecoder().raw_decode(block)
        yield found
        block = block[end:]


def named(record: Record, job: dict[str, Any], prefix: str = "") -> set[str]:
    """The fields that a job names, by whichever name; `hires.scale` is one of a nested record."""
    found: set[str] = set()
    for name, value in job.items():
        field = record.names.get(name)
        if field is not None:
            found.add(prefix + field.name)
            for item in value if isinstance(value, list) else [value]:
                if field.record is not None and isinstance(item, dict):
                    found |= named(field.record, item, f"{prefix}{field.name}.")
    return found


def fields(record: Record, prefix: str = "") -> set[str]:
    nested = (fields(field.record, f"{prefix}{field.name}.") for field in record if field.record is not None)
    own = {prefix + field.name for field in record if not field.meaning.startswith("refused")}
    return own.union(*nested)


def write_files(folder: Path) -> None:
    """Random ones of the names on the page that fit the demo model."""
    model = StableDiffusion.load(WEIGHTS / "demo.safetensors", WEIGHTS, "cpu", "fp32")
    unet = model.networks.unet
    write_lora(folder / "SD_LORAS" / "watercolour.safetensors", model, seed=0, size=0.1)
    (folder / "SD_CONTROLNETS").mkdir()
    heads = {NUM_HEADS_KEY: str(unet.config.num_heads)}
    path = folder / "SD_CONTROLNETS" / "control_v11p_sd15_canny.safetensors"
    save_file(random_controlnet(ControlNetConfig(unet.config)), path, heads)
    vae = {VAE_PREFIX + name: each.contiguous() for name, each in model.networks.vae.state_dict().items()}
    write_guide(folder / "SD_VAES", "sharp", vae)
    for name in ("SD_IP_ADAPTERS", "SD_CLIP_VISION"):
        (folder / name).mkdir()
    sizes = {"context_dim": unet.config.context_dim, "attentions": attention_widths(unet)}
    write_adapter(folder / "SD_IP_ADAPTERS" / "plus.safetensors", "plus", **sizes)
    write_encoder(folder / "SD_CLIP_VISION" / "encoder.safetensors")


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        for each in folder.iterdir():
            patch.setenv(each.name, str(each))
        patch.setenv("SD_WEIGHTS", str(WEIGHTS))
        patch.setenv("SD_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        patch.setenv("SD_DEVICE", "cpu")
        module = importlib.import_module("handler")
        yield module
        module.service().engine.close()
        sys.modules.pop("handler")
        gc.unfreeze()


def run(handler: ModuleType, job: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = asyncio.run(handler.handler({"id": "1", "input": job}))
    assert response["message"] == "success", response
    return response


def test_there_is_an_example_of_every_field() -> None:
    shown = set().union(*(named(JOB, job) for job in examples()))
    assert fields(JOB) - shown == set()


@pytest.mark.parametrize("job", examples(), ids=range(len(examples())))
def test_the_handler_runs_every_example(handler: ModuleType, job: dict[str, Any]) -> None:
    own = {name: value for name, value in job.items() if JOB.names.get(name) != JOB["steps"]}
    response = run(handler, {**own, **QUICK})
    for data in response.get("images", [response.get("image")]):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.load()
    assert json.dumps(response, allow_nan=False)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_an_image_sent_back_is_generated_again_byte_for_byte(handler: ModuleType, output_format: str) -> None:
    job = {"prompt": "a red star on a blue background", "seed": 2**40, "sampler": "euler_a", "num_images": 2, **QUICK}
    first = run(handler, {**job, "output_format": output_format})
    again = run(handler, {"parameters": first["images"][1], "output_format": output_format})
    assert (again["seed"], again["warnings"]) == (2**40 + 1, [])
    alone = {**job, "seed": 2**40 + 1, "num_images": 1, "output_format": output_format}
    assert again["image"] == run(handler, alone)["image"]
