"""Checkpoints and VAEs that are loaded when a job first names them, beside the jobs that run."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from sd_core.errors import InvalidRequest
from sd_core.formats.detect import NATIVE_SIZE_KEY
from sd_core.formats.keys import UNET_PREFIX
from sd_core.request import Progress
from tests.support.engine import hold_forwards
from tests.support.pictures import levels_apart
from tests.support.tiny_autoencoder import random_taesd
from tests.support.volume import NAMES, REQUEST, SECONDS, Alone, Start, is_of_vae, of, save_part


@pytest.fixture
def own_volume(volume: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(volume, tmp_path / "weights"))


def test_a_checkpoint_is_loaded_when_a_job_first_names_it(start: Start, alone: Alone) -> None:
    engine = start()
    assert list(engine.checkpoints) == ["tiny", "second", "third"]
    assert list(engine.models) == ["tiny"]
    futures = [engine.submit(of(name)) for name in ("second", "tiny", "third")]
    for name, future in zip(("second", "tiny", "third"), futures, strict=True):
        assert levels_apart(future.result(SECONDS).images[0], alone(of(name))) <= 1
    assert sorted(engine.models) == ["second", "third", "tiny"]


def test_the_head_of_a_file_says_its_size_before_it_is_loaded(start: Start) -> None:
    engine = start()
    assert {name: about.native_size for name, about in engine.checkpoints.items()} == {
        "tiny": 64,
        "second": 64,
        "third": 128,
    }
    assert engine.checkpoints["second"].nbytes == engine.checkpoints["tiny"].nbytes
    assert list(engine.models) == ["tiny"]


def test_networks_with_equal_weights_are_held_once(start: Start) -> None:
    engine = start()
    for name in ("third", "second"):
        engine.submit(of(name)).result(SECONDS)
    tiny, second, third = (engine.models[name] for name in NAMES)
    assert third.networks.vae is tiny.networks.vae and third.vae_key == tiny.vae_key
    assert third.networks.text_encoder is tiny.networks.text_encoder and third.text_key == tiny.text_key
    assert third.unet_key != tiny.unet_key and third.networks.unet is not tiny.networks.unet
    assert not {*vars(second.keys).values()} & {*vars(tiny.keys).values()}


def test_a_checkpoint_that_is_deleted_while_warm_is_an_error_of_later_jobs_only(
    start: Start, own_volume: Path, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(own_volume)
    engine.submit(of("second")).result(SECONDS)
    with hold_forwards(monkeypatch) as (begun, _):
        running = engine.submit(of("second"))
        assert begun.wait(SECONDS)
        (own_volume / "second.safetensors").unlink()
        with pytest.raises(InvalidRequest, match=r"model: .*second"):
            engine.submit(of("second"))
    assert levels_apart(running.result(SECONDS).images[0], alone(of("second"))) <= 1


def test_a_checkpoint_that_is_replaced_while_warm_is_read_again(start: Start, own_volume: Path, alone: Alone) -> None:
    engine = start(own_volume)
    before = engine.submit(of("second")).result(SECONDS).images[0]
    shutil.copy(own_volume / "third.safetensors", own_volume / "new")
    (own_volume / "new").replace(own_volume / "second.safetensors")
    after = engine.submit(of("second")).result(SECONDS).images[0]
    assert levels_apart(before, alone(of("second"))) <= 1 and levels_apart(after, alone(of("third"))) <= 1
    assert engine.checkpoints["second"].native_size == 128


@pytest.mark.parametrize("content", [b"", b"x" * 1000])
def test_a_file_that_is_no_checkpoint_is_an_error_that_names_it(start: Start, own_volume: Path, content: bytes) -> None:
    engine = start(own_volume)
    (own_volume / "broken.safetensors").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"model: 'broken\.safetensors' cannot be used") as caught:
        engine.submit(of("broken"))
    assert str(own_volume) not in str(caught.value)


def test_an_unknown_checkpoint_is_refused_with_what_is_there(start: Start) -> None:
    expected = r"model: 'sekond' is not here; did you mean 'second'\? There are: second, tiny, third"
    with pytest.raises(InvalidRequest, match=expected):
        start().submit(of("sekond"))


def test_a_vae_by_name_takes_the_place_of_the_checkpoints_own(start: Start, own_volume: Path) -> None:
    tensors = {
        name: tensor for name, tensor in load_file(own_volume / "tiny.safetensors").items() if not is_of_vae(name)
    }
    whole = {**tensors, **load_file(own_volume / "vae" / "sharp.safetensors")}
    save_file(whole, own_volume / "whole.safetensors", {NATIVE_SIZE_KEY: "64"})
    engine = start(own_volume)
    own, other, expected = (
        engine.submit(replace(REQUEST, model=model, vae=vae)).result(SECONDS).images[0]
        for model, vae in (("tiny", None), ("tiny", "sharp"), ("whole", None))
    )
    assert levels_apart(other, expected) <= 1 and levels_apart(own, other) > 20
    keys = {name: model.vae_key for name, model in engine.models.items()}
    assert keys["whole"] != keys["tiny"], "it shares the file's VAE"
    with pytest.raises(InvalidRequest, match="vae: 'shrp' is not here; did you mean 'sharp'"):
        engine.submit(replace(REQUEST, vae="shrp"))


def test_a_job_waits_for_its_checkpoint_and_for_its_vae(start: Start, alone: Alone) -> None:
    image = start().submit(replace(of("second"), vae="sharp")).result(SECONDS).images[0]
    assert levels_apart(image, alone(of("second"))) <= 1, "the file's VAE is the second one's"


def test_a_vae_that_only_decodes_leaves_encoding_to_the_checkpoints_own(start: Start, own_volume: Path) -> None:
    save_file(random_taesd(has_encoder=False).state_dict(), own_volume / "vae" / "taesd.safetensors")
    engine = start(own_volume)
    image = np.full((64, 64, 3), 100, np.uint8)
    result = engine.submit(replace(REQUEST, image=image, vae="taesd")).result(SECONDS)
    assert result.images[0].shape == (64, 64, 3)
    assert levels_apart(result.images[0], engine.submit(replace(REQUEST, image=image)).result(SECONDS).images[0]) > 1


def test_previews_are_decoded_by_the_jobs_taesd(start: Start, own_volume: Path) -> None:
    save_file(random_taesd(has_encoder=False).state_dict(), own_volume / "vae" / "taesd.safetensors")
    engine, reported = start(own_volume), list[Progress]()
    image = engine.submit(replace(REQUEST, vae="taesd"), reported.append).result(SECONDS).images[0]
    assert levels_apart(reported[-1].preview(), image) <= 1, "after the last step, the preview is the image"
    assert levels_apart(reported[0].preview(), image) > 1


def test_a_checkpoint_without_text_encoder_and_vae_borrows_the_first_ones(
    start: Start, own_volume: Path, alone: Alone
) -> None:
    save_part(own_volume / "third.safetensors", own_volume / "bare.safetensors", lambda n: n.startswith(UNET_PREFIX))
    engine = start(own_volume, budget=1.5)
    result = engine.submit(of("bare")).result(SECONDS)
    assert levels_apart(result.images[0], alone(of("third"))) <= 1
    assert result.warnings == [
        "the checkpoint bare has no text encoder: that of tiny was used",
        "the checkpoint bare has no VAE: that of tiny was used",
    ]
    chosen = engine.submit(replace(of("bare"), vae="sharp")).result(SECONDS)
    assert chosen.warnings == ["the checkpoint bare has no text encoder: that of tiny was used"]
    engine.submit(of("second")).result(SECONDS)  # tiny makes room
    assert levels_apart(engine.submit(of("bare")).result(SECONDS).images[0], alone(of("third"))) <= 1
