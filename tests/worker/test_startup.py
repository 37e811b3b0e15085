"""From settings to a worker that generates, and the messages that end a start."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builder import convert
from sd_core.engine import aot
from sd_core.engine.graphs import Bucket, Step
from sd_core.models.unet import UNet
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from worker.settings import Settings, StartupError, read_settings
from worker.startup import compiled_forwards, start

ROOT = Path(__file__).resolve().parents[2]


def read(tmp_path: Path, weights: Path, **environ: str) -> Settings:
    environ = {"SD_OUTPUTS": str(tmp_path / "outputs"), "SD_DEVICE": "cpu", "SD_WEIGHTS": str(weights), **environ}
    return read_settings(environ)


def refusal(settings: Settings) -> str:
    with pytest.raises(StartupError) as caught:
        start(settings)
    return str(caught.value)


@pytest.fixture
def weights(tmp_path: Path, tiny_weights: Path) -> Path:
    """A directory of the test's own with the tiny checkpoint."""
    return Path(shutil.copytree(tiny_weights.parent, tmp_path / "w"))


def make_ckpt(weights: Path, tiny_weights: Path, name: str = "v1-5-pruned-emaonly.ckpt") -> Path:
    """Replaces the tiny checkpoint by a `.ckpt` of its tensors."""
    source = weights / name
    torch.save({"state_dict": load_file(weights / tiny_weights.name), "global_step": 7}, source)
    (weights / tiny_weights.name).unlink()
    return source


def test_a_started_worker_generates(tmp_path: Path, tiny_weights: Path) -> None:
    service = start(read(tmp_path, tiny_weights.parent, SD_MAX_PIXELS="8192"))
    assert (service.limits.native_sizes, service.limits.max_pixels) == ({"tiny": 64}, 8192)
    assert list(service.identities) == ["tiny"]
    result = service.engine.submit(Request("a cat", seed=1, width=64, height=72, steps=1)).result()
    assert result.images[0].shape == (72, 64, 3)
    service.engine.close()


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_a_broken_checkpoint_ends_the_start_with_one_message(
    tmp_path: Path, weights: Path, tiny_weights: Path, damage: str
) -> None:
    file = weights / tiny_weights.name
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "garbage": b"x" * 1000, "truncated": content[: len(content) // 2]}[damage])
    message = refusal(read(tmp_path, weights))
    assert f"The model {file} could not be loaded" in message
    assert f"python -m builder inspect {file}" in message


def test_of_several_checkpoints_the_broken_one_is_named(tmp_path: Path, weights: Path, tiny_weights: Path) -> None:
    (weights / "second.safetensors").write_bytes(b"x" * 1000)
    message = refusal(read(tmp_path, weights, SD_CHECKPOINT=f"{tiny_weights.name}:second"))
    assert f"The model {weights / 'second.safetensors'} could not be loaded" in message


def test_a_device_that_does_not_exist_ends_the_start(tmp_path: Path, tiny_weights: Path) -> None:
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    message = refusal(read(tmp_path, tiny_weights.parent, SD_DEVICE=absent))
    assert absent in message
    assert "export SD_DEVICE=cpu" in message
    assert "builder" not in message


@pytest.mark.parametrize("name", ["v1-5-pruned-emaonly.ckpt", "Model.CKPT"])
def test_a_lone_ckpt_is_converted_beside_itself(tmp_path: Path, weights: Path, tiny_weights: Path, name: str) -> None:
    source = make_ckpt(weights, tiny_weights, name)
    for _ in range(2):  # the second start finds the first one's file
        service = start(read(tmp_path, weights))
        service.engine.close()
        assert service.identities[source.stem].describe() == {
            "name": source.stem,
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    assert {path.name for path in weights.iterdir()} == {
        source.name, f"{source.stem}.safetensors", "merges.txt", "vocab.json",
    }  # fmt: skip


def test_a_checkpoint_with_an_ending_in_capitals_is_loaded(tmp_path: Path, weights: Path, tiny_weights: Path) -> None:
    (weights / tiny_weights.name).rename(weights / "Model.SAFETENSORS")
    service = start(read(tmp_path, weights, SD_CHECKPOINT="Model.SAFETENSORS"))
    service.engine.close()
    assert list(service.identities) == ["Model"]


def test_a_ckpt_of_something_else_ends_the_start_and_leaves_nothing(tmp_path: Path, weights: Path) -> None:
    next(weights.glob("*.safetensors")).unlink()
    torch.save({"state_dict": {"lora_unet_down.lora_up.weight": torch.zeros(4, 4)}}, weights / "a.ckpt")
    message = refusal(read(tmp_path, weights))
    assert "a.ckpt could not be loaded" in message
    assert "sd-weights" not in message
    assert sorted(path.name for path in weights.iterdir()) == ["a.ckpt", "merges.txt", "vocab.json"]


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    """No lock can be made in `weights`, as on a volume that is mounted read-only. Tests may run as root."""
    hold = convert.hold

    @contextmanager
    def hold_elsewhere(path: Path) -> Iterator[None]:
        if path.parent == weights:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        with hold(path):
            yield

    monkeypatch.setattr(convert, "hold", hold_elsewhere)


@pytest.mark.slow
@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("chosen", ["", "old one.ckpt", "tiny:old one"])
def test_on_a_read_only_volume_the_commands_of_the_message_mend_the_start(
    tmp_path: Path, weights: Path, tiny_weights: Path, chosen: str
) -> None:
    make_ckpt(weights, tiny_weights, "old one.ckpt")
    if "tiny" in chosen:
        shutil.copy(tiny_weights, weights)
    message = refusal(read(tmp_path, weights, SD_CHECKPOINT=chosen))
    assert os.strerror(errno.EROFS) in message
    commands = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    script = "\n".join(
        ["set -e", f'python() {{ {sys.executable} "$@"; }}', *commands, 'echo "$SD_WEIGHTS"', 'echo "$SD_CHECKPOINT"']
    )
    environ = {**os.environ, "HOME": str(tmp_path / "home with a space")}
    ended = subprocess.run(
        ["/bin/sh", "-c", script], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    directory, names = ended.stdout.splitlines()[-2:]
    service = start(read(tmp_path, Path(directory), SD_CHECKPOINT=names))
    service.engine.close()
    assert next(iter(service.identities)) == ("tiny" if "tiny" in chosen else "old one")


def test_compiled_forwards_are_loaded_for_the_gpu_that_they_were_made_for(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def load(folder: Path, _unet: UNet) -> dict[Bucket, Step]:
        asked.append(folder)
        return {Bucket(1, 2, 8, 8, 77): lambda *inputs: inputs[0]}

    monkeypatch.setattr(aot, "load_packages", load)
    monkeypatch.setattr(aot, "device_name", lambda _device: "sm90")
    tiny_model = replace(tiny_model, file=replace(tiny_model.file, path=tmp_path / "tiny.safetensors"))
    on_gpu = replace(tiny_model, info=replace(tiny_model.info, device="cuda"))
    assert compiled_forwards(on_gpu) == {} and not asked, "nothing was compiled"
    (tmp_path / "compiled").mkdir()
    assert compiled_forwards(tiny_model) == {} and not asked, "a CPU has no use for them"
    assert len(compiled_forwards(on_gpu)) == 1
    assert [folder.name.startswith("sm90-torch") for folder in asked] == [True]
