import hashlib
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sd_core.engine import aot as packages
from sd_core.engine.graphs import Bucket, Step
from sd_core.models.unet import UNet
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from worker import startup
from worker.identity import ModelIdentity
from worker.settings import Settings, read_settings
from worker.startup import StartupError, find, start


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "volume"


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    directory = tmp_path / "bundled"
    fill(directory, "demo.safetensors")
    return directory


def fill(directory: Path, *names: str, tokenizer: bool = True) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in (*names, *(("vocab.json", "merges.txt") if tokenizer else ())):
        (directory / name).write_bytes(b"")
    return directory


def read(tmp_path: Path, **environ: str) -> Settings:
    environ = {"SD_OUTPUTS": str(tmp_path / "outputs"), **environ}
    return read_settings(environ, tmp_path / "volume", tmp_path / "workspace", tmp_path / "bundled")


def refusal(settings: Settings) -> str:
    with pytest.raises(StartupError) as caught:
        find(settings)
    return str(caught.value)


def test_the_volume_comes_before_the_workspace_and_that_before_the_demo(
    tmp_path: Path, volume: Path, bundled: Path
) -> None:
    assert find(read(tmp_path)).checkpoint == bundled / "demo.safetensors"
    fill(tmp_path / "workspace" / "weights", "b.safetensors")
    assert find(read(tmp_path)).checkpoint.name == "b.safetensors"
    (volume / "weights").mkdir(parents=True)  # there, but empty
    assert find(read(tmp_path)).checkpoint.name == "b.safetensors"
    fill(volume / "weights", "a.safetensors")
    assert find(read(tmp_path)).checkpoint.name == "a.safetensors"


def test_on_runpod_the_demo_never_stands_in(tmp_path: Path, volume: Path, bundled: Path) -> None:
    fill(volume / "weights", "readme.txt", tokenizer=False)
    message = refusal(read(tmp_path, RUNPOD_POD_ID="pod"))
    assert f"{volume / 'weights'}: readme.txt" in message
    assert f"{tmp_path / 'workspace' / 'weights'}: does not exist" in message
    assert str(bundled) not in message
    assert f"--local-dir {volume / 'weights'}" in message


def test_weights_that_are_set_and_wrong_are_never_replaced(tmp_path: Path, bundled: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere}: does not exist" in refusal(read(tmp_path, SD_WEIGHTS=str(nowhere)))
    empty = fill(tmp_path / "empty", tokenizer=False)
    assert f"{empty}: is empty" in refusal(read(tmp_path, SD_WEIGHTS=str(empty)))


def test_weights_may_name_a_file(tmp_path: Path) -> None:
    file = fill(tmp_path / "w", "a.safetensors", "b.safetensors") / "b.safetensors"
    assert find(read(tmp_path, SD_WEIGHTS=str(file))).checkpoint == file
    assert find(read(tmp_path, SD_WEIGHTS=str(file), SD_CHECKPOINT="b.safetensors")).checkpoint == file
    assert "another one" in refusal(read(tmp_path, SD_WEIGHTS=str(file), SD_CHECKPOINT="a.safetensors"))
    assert "does not exist" in refusal(read(tmp_path, SD_WEIGHTS=str(tmp_path / "w" / "c.safetensors")))
    assert "neither a .safetensors nor" in refusal(read(tmp_path, SD_WEIGHTS=str(tmp_path / "w" / "vocab.json")))


def test_the_usual_checkpoint_comes_before_others(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "a.safetensors", "v1-5-pruned-emaonly.safetensors")
    assert find(read(tmp_path, SD_WEIGHTS=str(directory))).checkpoint.stem == "v1-5-pruned-emaonly"
    beside_another_kind = fill(tmp_path / "v", "vae.safetensors", "v1-5-pruned-emaonly.ckpt")
    assert find(read(tmp_path, SD_WEIGHTS=str(beside_another_kind))).checkpoint.stem == "v1-5-pruned-emaonly"


def test_checkpoints_of_both_kinds_must_be_told_apart_too(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "mine.ckpt", "vae.safetensors")
    assert "  vae.safetensors\n  mine.ckpt" in refusal(read(tmp_path, SD_WEIGHTS=str(directory)))


def test_several_checkpoints_must_be_told_apart(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "b.safetensors", "a.safetensors", ".hidden.safetensors")
    message = refusal(read(tmp_path, SD_WEIGHTS=str(directory)))
    assert "holds 2 checkpoints" in message
    assert "  a.safetensors\n  b.safetensors" in message
    assert "export SD_CHECKPOINT=a.safetensors" in message
    settings = read(tmp_path, SD_WEIGHTS=str(directory), SD_CHECKPOINT="b.safetensors")
    assert find(settings).checkpoint.name == "b.safetensors"


def test_a_named_checkpoint_that_is_not_there_is_never_replaced(tmp_path: Path, bundled: Path) -> None:
    message = refusal(read(tmp_path, SD_CHECKPOINT="mine.safetensors"))
    assert "looked for mine.safetensors" in message
    assert f"{bundled}: demo.safetensors" in message
    assert "neither" in refusal(read(tmp_path, SD_CHECKPOINT="mine.bin"))


def test_a_ckpt_is_taken_where_there_is_nothing_else(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", "v1-5-pruned-emaonly.ckpt")
    settings = read(tmp_path, SD_WEIGHTS=str(directory))
    assert find(settings).checkpoint.name == "v1-5-pruned-emaonly.ckpt"
    fill(directory, "v1-5-pruned-emaonly.safetensors")
    assert find(settings).checkpoint.name == "v1-5-pruned-emaonly.safetensors"


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_tokenizer_file_is_named_with_what_mends_it(tmp_path: Path, name: str) -> None:
    directory = fill(tmp_path / "w", "a.safetensors")
    (directory / name).unlink()
    message = refusal(read(tmp_path, SD_WEIGHTS=str(directory)))
    assert f"The tokenizer's {name} must lie beside {directory / 'a.safetensors'}" in message
    assert f"hf download openai/clip-vit-large-patch14 vocab.json merges.txt --local-dir {directory}" in message


def test_a_long_directory_is_shown_short(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w", *(f"{number:03}.txt" for number in range(100)), tokenizer=False)
    message = refusal(read(tmp_path, SD_WEIGHTS=str(directory)))
    assert "and 80 more" in message


def test_an_outputs_directory_that_cannot_be_made_ends_the_start(tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = read(tmp_path, SD_WEIGHTS=str(tiny_weights.parent), SD_OUTPUTS=str(tmp_path / "file" / "outputs"))
    with pytest.raises(StartupError, match="export SD_OUTPUTS="):
        start(settings)


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
def test_a_broken_checkpoint_ends_the_start_with_one_message(tmp_path: Path, tiny_weights: Path, damage: str) -> None:
    directory = tmp_path / "w"
    shutil.copytree(tiny_weights.parent, directory)
    file = directory / tiny_weights.name
    content = file.read_bytes()
    file.write_bytes({"empty": b"", "garbage": b"x" * 1000, "truncated": content[: len(content) // 2]}[damage])
    with pytest.raises(StartupError) as caught:
        start(read(tmp_path, SD_WEIGHTS=str(directory)))
    assert f"The model {file} could not be loaded" in str(caught.value)
    assert f"python -m builder inspect {file}" in str(caught.value)


def test_a_device_that_is_not_there_ends_the_start(tmp_path: Path, tiny_weights: Path) -> None:
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(StartupError, match=absent) as caught:
        start(read(tmp_path, SD_WEIGHTS=str(tiny_weights.parent), SD_DEVICE=absent))
    assert "export SD_DEVICE=cpu" in str(caught.value)
    assert "builder" not in str(caught.value)


def test_a_gpu_that_torch_cannot_use_ends_the_start_on_runpod(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    startup.log.configure("INFO")
    monkeypatch.setattr(startup, "_DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here, there = (read(tmp_path, SD_WEIGHTS=str(tiny_weights.parent), RUNPOD_POD_ID=pod) for pod in ("", "pod"))
    startup._check_gpu(there)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(StartupError, match="has an NVIDIA GPU that torch"):
        startup._check_gpu(there)
    assert "NVIDIA" not in capsys.readouterr().out
    startup._check_gpu(here)
    assert "has an NVIDIA GPU that torch" in capsys.readouterr().out
    startup._check_gpu(replace(there, device="cpu"))


def test_a_started_worker_draws(tmp_path: Path, tiny_weights: Path) -> None:
    service = start(read(tmp_path, SD_WEIGHTS=str(tiny_weights.parent), SD_DEVICE="cpu", SD_MAX_PIXELS="8192"))
    assert (service.limits.native_sizes, service.limits.max_pixels) == ({"tiny": 64}, 8192)
    assert service.identities["tiny"].name == "tiny"
    result = service.engine.submit(Request("a cat", seed=1, width=64, height=72, steps=1)).result()
    assert result.images[0].shape == (72, 64, 3)
    service.engine.close()


def test_a_lone_ckpt_is_converted_beside_itself(tmp_path: Path, tiny_weights: Path) -> None:
    directory = tmp_path / "w"
    shutil.copytree(tiny_weights.parent, directory)
    source = directory / "v1-5-pruned-emaonly.ckpt"
    torch.save({"state_dict": load_file(directory / tiny_weights.name), "global_step": 7}, source)
    (directory / tiny_weights.name).unlink()
    for _ in range(2):  # the second start finds the first one's file
        service = start(read(tmp_path, SD_WEIGHTS=str(directory), SD_DEVICE="cpu"))
        service.engine.close()
        assert service.identities["v1-5-pruned-emaonly"].describe() == {
            "name": "v1-5-pruned-emaonly",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
    assert sorted(path.suffix for path in directory.iterdir()) == [".ckpt", ".json", ".safetensors", ".txt"]


def test_a_ckpt_of_something_else_ends_the_start_and_leaves_nothing(tmp_path: Path) -> None:
    directory = fill(tmp_path / "w")
    torch.save({"state_dict": {"lora_unet_down.lora_up.weight": torch.zeros(4, 4)}}, directory / "a.ckpt")
    with pytest.raises(StartupError, match=r"a\.ckpt could not be loaded"):
        start(read(tmp_path, SD_WEIGHTS=str(directory), SD_DEVICE="cpu"))
    assert sorted(path.name for path in directory.iterdir()) == ["a.ckpt", "merges.txt", "vocab.json"]


def wait_for_hash(identity: ModelIdentity) -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint hash":
            thread.join()


def test_an_unknown_hash_is_computed_meanwhile(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"abc")
    identity = ModelIdentity("a", None, file)
    assert identity.describe() == {"name": "a", "sha256": None}
    identity.hash_in_background()
    wait_for_hash(identity)
    assert identity.describe()["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_known_hash_is_not_computed_again(tmp_path: Path) -> None:
    identity = ModelIdentity("a", "known", tmp_path / "absent")
    identity.hash_in_background()
    wait_for_hash(identity)
    assert identity.describe()["sha256"] == "known"


def test_a_file_that_cannot_be_hashed_costs_no_more_than_the_hash(tmp_path: Path, capsys: Any) -> None:
    startup.log.configure("INFO")
    identity = ModelIdentity("a", None, tmp_path / "absent")
    identity.hash_in_background()
    wait_for_hash(identity)
    assert identity.describe()["sha256"] is None
    assert "cannot be hashed" in capsys.readouterr().out


def test_compiled_forwards_are_loaded_for_the_gpu_that_they_were_made_for(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def load(folder: Path, _unet: UNet) -> dict[Bucket, Step]:
        asked.append(folder)
        return {Bucket(1, 2, 8, 8, 77): lambda *inputs: inputs[0]}

    monkeypatch.setattr(packages, "load_packages", load)
    monkeypatch.setattr(packages, "device_name", lambda _device: "sm90")
    on_gpu = replace(tiny_model, info=replace(tiny_model.info, device="cuda"))
    assert startup._packages(on_gpu, tmp_path) == {} and not asked, "nothing was compiled"
    (tmp_path / "compiled").mkdir()
    assert startup._packages(tiny_model, tmp_path) == {} and not asked, "a CPU has no use for them"
    assert len(startup._packages(on_gpu, tmp_path)) == 1
    assert [folder.name.startswith("sm90-torch") for folder in asked] == [True]


def test_the_start_is_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "process_age", lambda: 1.5)
    clock = iter([10.0, 10.25, 12.0])
    monkeypatch.setattr(startup.time, "perf_counter", lambda: next(clock))
    phases = startup.Phases()
    phases.end("load")
    phases.end("warm_up")
    assert phases.milliseconds() == {"imports": 1500, "load": 250, "warm_up": 1750, "total": 3500}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
def test_a_process_knows_its_age() -> None:
    command = "import time; time.sleep(0.5); from worker.startup import process_age; print(process_age())"
    started = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True).stdout)
    assert 0.5 <= age <= time.monotonic() - started + 0.1
