"""Jobs with ControlNets: beside others, in every pass, with masks, and with files that cannot be used."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sd_core.additions import ControlNet
from sd_core.engine.engine import Engine
from sd_core.errors import InvalidRequest
from sd_core.models.controlnet import ControlNetConfig
from sd_core.models.unet import UNetConfig
from sd_core.nested import Hires
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from tests.support.controls import (
    difference,
    hint_picture,
    library_of,
    random_adapter_weights,
    random_controlnet,
    write_guide,
)

REQUEST = Request("a cat", seed=3, width=64, height=64, steps=3, sampler="euler_a", schedule="default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: StableDiffusion) -> Path:
    folder = tmp_path_factory.mktemp("controlnet")
    write_guide(folder, "one", random_controlnet())
    write_guide(folder, "shuffle", random_controlnet(seed=5))
    write_guide(folder, "adapter", random_adapter_weights())
    base = {name: each.float() for name, each in tiny_model.networks.unet.state_dict().items()}
    write_guide(folder, "change", difference(random_controlnet(), base))
    narrow = ControlNetConfig(UNetConfig(channels=(32, 64), num_res_blocks=1, context_dim=16))
    write_guide(folder, "narrow", random_controlnet(narrow))
    (folder / "cut.safetensors").write_bytes((folder / "one.safetensors").read_bytes()[:-9])
    return folder


@pytest.fixture(scope="module")
def engine(tiny_model: StableDiffusion, folder: Path) -> Iterator[Engine]:
    engine = Engine([tiny_model], max_batch=8, library=library_of(folder))
    yield engine
    engine.close()


def controlled(*models: str, **changes: Any) -> Request:
    """The request with these ControlNets, whose fields but the model are those of `unit`."""
    unit = changes.pop("unit", {})
    units = [ControlNet(model=model, image=hint_picture(64, 64, index), **unit) for index, model in enumerate(models)]
    return replace(REQUEST, controlnets=tuple(units), **changes)


def generate(engine: Engine, request: Request) -> np.ndarray:
    return np.stack(engine.submit(request).result().images).astype(int)


def test_each_image_equals_its_solo_run(engine: Engine) -> None:
    requests = [
        REQUEST,
        controlled("one", num_images=2),
        controlled("one", "adapter", seed=9, unit={"mode": "control"}),
        controlled("shuffle", deepcache=2, steps=4, prompt="a dog " * 60),
        controlled("one", seed=4, unit={"start": 0.4}, scale=1.0),
    ]
    alone = [generate(engine, request) for request in requests]
    futures = [engine.submit(request) for request in requests]
    for future, expected in zip(futures, alone, strict=True):
        together = np.stack(future.result().images).astype(int)
        assert np.abs(together - expected).max() <= 1
    assert np.abs(alone[0][0] - alone[1][0]).max() > 4, "the control should change the image"


def test_a_difference_is_the_whole_network(engine: Engine) -> None:
    assert np.abs(generate(engine, controlled("change")) - generate(engine, controlled("one"))).max() <= 1


@pytest.mark.slow
def test_passes_of_hires(engine: Engine) -> None:
    """An image whose hint acts in one pass alone differs from one with both and from one with none."""
    hires = Hires(scale=1.5, upscaler="latent", steps=3, strength=0.6)
    options = {
        option: generate(engine, controlled("one", unit={"hr_option": option}, hires=hires))
        for option in ("both", "low", "high")
    }
    options["none"] = generate(engine, replace(REQUEST, hires=hires))
    assert {each.shape for each in options.values()} == {(1, 96, 96, 3)}
    names = list(options)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert np.abs(options[name] - options[other]).max() > 2, (name, other)


@pytest.mark.slow
def test_a_masked_image(engine: Engine) -> None:
    """The control acts in the masked part, and what is kept comes back exactly."""
    image, mask = hint_picture(64, 64, 5), np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    changes = {"image": image, "mask": mask, "mask_blur": 0, "strength": 1.0}
    plain, own = generate(engine, replace(REQUEST, **changes))[0], generate(engine, controlled("one", **changes))[0]
    assert (own[32:] == image[32:]).all()
    assert np.abs(own[:32] - plain[:32]).max() > 4
    painted = replace(REQUEST, controlnets=(ControlNet(model="one", preprocessor="inpaint"),), **changes)
    assert np.abs(generate(engine, painted)[0][:32] - own[:32]).max() > 4


@pytest.mark.slow
def test_seamless_images(engine: Engine) -> None:
    """Beside an image that is not, with the same hint: each equals its solo run."""
    requests = [controlled("one", tiling=True), controlled("one")]
    alone = [generate(engine, request) for request in requests]
    futures = [engine.submit(request) for request in requests]
    for future, expected in zip(futures, alone, strict=True):
        assert np.abs(np.stack(future.result().images).astype(int) - expected).max() <= 1
    assert np.abs(alone[0] - alone[1]).max() > 4


def test_an_unknown_name(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=r"controlnets\[1\].model: 'shufffle' is not here; did you mean 'shuffle'"):
        engine.submit(controlled("one", "shufffle"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("narrow", r"controlnets\[0\].model: 'narrow' cannot be used with this model: it was made for a UNet of the"),
        ("cut", "the ControlNet 'cut.safetensors' cannot be used: cut.safetensors is not a complete safetensors file"),
        ("../one", r"controlnets\[0\].model: '../one' is not here"),
    ],
)
def test_files_that_cannot_be_used(engine: Engine, folder: Path, model: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as raised:
        engine.submit(controlled(model)).result()
    assert str(folder) not in str(raised.value)


@pytest.mark.slow
def test_a_file_that_is_replaced_is_read_again(engine: Engine, folder: Path) -> None:
    write_guide(folder, "new", random_controlnet())
    first = generate(engine, controlled("new"))
    write_guide(folder, "new", random_controlnet(seed=5))
    second = generate(engine, controlled("new"))
    assert np.abs(first - generate(engine, controlled("one"))).max() <= 1
    assert np.abs(first - second).max() > 2
