"""Several checkpoints in one engine: each looked up by name, each with its own networks and native size."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sd_core.engine.admission import budget_of
from sd_core.engine.engine import Engine
from sd_core.engine.kinds.unet import fullest
from sd_core.engine.memory import Memory
from sd_core.engine.pool import Pool
from sd_core.errors import InvalidRequest, ModelError
from sd_core.formats.check import meta_networks
from sd_core.layout.choose import bytes_in_use, bytes_to_pack, lay_out
from sd_core.models.layers import Conv2d
from sd_core.pipeline.model import StableDiffusion
from tests.support.engine import SMALL_REQUEST
from tests.support.pictures import levels_apart
from tests.support.random_weights import TINY, write_checkpoint

SECONDS = 60


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> StableDiffusion:
    """Other weights, and another native size."""
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    write_checkpoint(path, replace(TINY, native_size=128), torch.float32, seed=1)
    return StableDiffusion.load(path, tiny_checkpoint.parent, "cpu", "fp32")


@pytest.fixture
def both(tiny_model: StableDiffusion, other_model: StableDiffusion) -> Iterator[Engine]:
    engine = Engine([tiny_model, other_model], max_batch=4)
    yield engine
    engine.close()


def test_two_checkpoints_in_turn_generate_what_each_does_alone(
    both: Engine, tiny_model: StableDiffusion, other_model: StableDiffusion
) -> None:
    assert list(both.models) == ["tiny", "other"]
    requests = [replace(SMALL_REQUEST, model=name, seed=seed) for seed in range(2) for name in (None, "other", "tiny")]
    images = [both.submit(request) for request in requests]
    for request, future in zip(requests, images, strict=True):
        model = other_model if request.model == "other" else tiny_model
        alone = Engine([model], max_batch=4)
        expected = alone.submit(replace(request, model=None)).result(SECONDS).images[0]
        alone.close()
        assert levels_apart(future.result(SECONDS).images[0], expected) <= 1
    default, other, tiny = (future.result(SECONDS).images[0] for future in images[:3])
    assert levels_apart(default, tiny) <= 1
    assert levels_apart(default, other) > 20


def test_warming_up_prepares_every_model(both: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[tuple[str | None, int]] = []
    submit = both.submit
    monkeypatch.setattr(
        both, "submit", lambda request: (warmed.append((request.model, request.width)), submit(request))[1]
    )
    both.warm_up()
    assert warmed == [("tiny", 64), ("other", 128)]


def test_an_unknown_model_is_refused_with_the_loaded_ones(both: Engine) -> None:
    with pytest.raises(
        InvalidRequest, match=r"model: 'othr' is not here; did you mean 'other'\? There are: other, tiny"
    ):
        both.submit(replace(SMALL_REQUEST, model="othr"))


def test_networks_of_two_models_share_no_key(tiny_model: StableDiffusion, other_model: StableDiffusion) -> None:
    pool = Pool([tiny_model, other_model])
    assert pool.loaded(tiny_model.file) is tiny_model and pool.model([other_model.file]) is other_model
    for model in (tiny_model, other_model):
        assert pool.unet(model.unet_key) is model.networks.unet
        assert pool.vae(model.vae_key) is model.networks.vae
        assert pool.text_encoder(model.text_key) is model.networks.text_encoder
    assert pool.native_pixels(tiny_model.unet_key) != pool.native_pixels(other_model.unet_key)
    assert len(pool.networks) == 6


def test_two_models_of_the_same_name_are_refused(tiny_model: StableDiffusion) -> None:
    with pytest.raises(ModelError, match="two of the checkpoints have the same name: tiny"):
        Pool([tiny_model, tiny_model])


def test_models_on_two_devices_are_refused(tiny_model: StableDiffusion, other_model: StableDiffusion) -> None:
    elsewhere = replace(other_model, info=replace(other_model.info, device="mps"))
    with pytest.raises(ModelError, match="one engine runs on one device, not on cpu, mps"):
        Pool([tiny_model, elsewhere])


def test_weights_are_counted_as_they_are_once_used(tiny_model: StableDiffusion) -> None:
    networks = meta_networks(tiny_model.networks.architecture)
    plain = sum(4 * weight.numel() for network in networks for weight in network.parameters())
    assert sum(bytes_in_use(network, torch.float32) for network in networks) == plain
    assert sum(bytes_in_use(network, torch.float16) for network in networks) == plain // 2
    wide = torch.nn.Sequential(Conv2d(256, 256, 3, padding=1, bias=False))
    lay_out(wide, torch.device("cpu"), torch.float32)
    packed = bytes_to_pack(wide)
    assert bytes_in_use(wide, torch.float32) == (packed or 4 * 256 * 256 * 9)
    assert Pool([tiny_model]).bytes >= plain


def test_by_default_models_leave_room_for_the_fullest_forward(
    tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool([tiny_model])
    monkeypatch.setattr(Memory, "usable", lambda _: 10**9)
    forward = fullest(tiny_model.networks.unet, 64, 8)
    assert budget_of(pool, Memory(pool.device), 8) == pool.bytes + 10**9 - forward
    assert budget_of(pool, Memory(pool.device), 10**6) == pool.bytes
    monkeypatch.setattr(Memory, "usable", lambda _: None)
    assert budget_of(pool, Memory(pool.device), 8) == math.inf
