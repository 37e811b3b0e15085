"""The command line: exit status, errors of one line, and the output of `inspect`."""

import hashlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from builder.__main__ import main
from sd_core.errors import ModelError
from sd_core.formats.files import converted_name, open_safetensors
from sd_core.formats.keys import UNET_PREFIX, ema_name
from sd_core.formats.load import load_networks
from tests.support.outcome import State


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a failing command writes."""
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_convert_writes_beside_the_source(source: Path, state: State, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source)]) == 0
    destination = source.with_suffix(".safetensors")
    out, err = capsys.readouterr()
    assert out == f"{destination}\n"
    assert err == ""
    assert load_file(destination).keys() == state.keys()


def test_convert_takes_its_options(source: Path, state: State, tmp_path: Path) -> None:
    vae = tmp_path / "vae.safetensors"
    save_file({n: t * 2 for n, t in state.items() if n.startswith("first_stage_model.")}, vae)
    destination = tmp_path / "x.safetensors"
    destination.write_bytes(b"old")
    command = ["convert", str(source), str(destination), "--dtype", "bf16", "--use-ema", "--vae", str(vae), "--force"]
    assert main(command) == 0
    found = load_file(destination)
    name = UNET_PREFIX + "out.0.bias"
    assert torch.equal(found[name], (state[name] + 1).bfloat16())
    name = "first_stage_model.quant_conv.bias"
    assert torch.equal(found[name], (state[name] * 2).bfloat16())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Model.CKPT", "Model.safetensors"),
        ("model.v2.pt", "model.v2.safetensors"),
        ("Model.SAFETENSORS", "Model-converted.safetensors"),
        ("model.safetensors", "model-converted.safetensors"),
    ],
)
def test_the_default_destination_is_never_the_source(tmp_path: Path, name: str, expected: str) -> None:
    assert converted_name(tmp_path / name) == tmp_path / expected


@pytest.mark.parametrize(
    ("name", "pickled", "expected"),
    [("Model.SAFETENSORS", True, "Model-converted.safetensors"), ("Model.CKPT", False, "Model.safetensors")],
)
def test_content_decides_what_a_file_is(
    tmp_path: Path, state: State, capsys: pytest.CaptureFixture[str], name: str, pickled: bool, expected: str
) -> None:
    path = tmp_path / name
    torch.save({"state_dict": state}, path) if pickled else save_file(state, path)
    assert main(["convert", str(path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / expected}\n"
    assert load_file(tmp_path / expected).keys() == state.keys()
    assert inspected(path, capsys)["format"] == ("PyTorch checkpoint (zip format)" if pickled else "safetensors")


def advised(message: str) -> list[str]:
    """The arguments of the builder command between backticks."""
    command = shlex.split(message.split("`")[1])
    assert command[:3] == ["python", "-m", "builder"]
    return command[3:]


def test_the_advice_for_a_pickle_named_safetensors_works(
    tmp_path: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my model.safetensors"
    torch.save({"state_dict": state}, path)
    with pytest.raises(ModelError, match="is a PyTorch checkpoint") as caught:
        open_safetensors(path)
    assert main(advised(str(caught.value))) == 0
    better = Path(capsys.readouterr().out.strip())
    assert str(caught.value).endswith(f"then use {better.name}")
    assert load_networks(better, torch.device("cpu"), torch.float32)


def test_the_advice_for_a_damaged_safetensors_file_works(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "my model.safetensors"
    path.write_bytes(b"cut short")
    with pytest.raises(ModelError, match="not a complete safetensors file") as caught:
        load_networks(path, torch.device("cpu"), torch.float32)
    assert main([str(source) if argument == "SRC" else argument for argument in advised(str(caught.value))]) == 0
    assert load_networks(path, torch.device("cpu"), torch.float32)


@pytest.mark.slow
def test_any_file_name_can_be_printed_in_any_encoding(tmp_path: Path, state: State) -> None:
    path = tmp_path / "modèle.safetensors"
    save_file(state, path)
    for arguments, status in ((["inspect", path], 0), (["convert", path], 0), (["convert", path, path], 1)):
        done = subprocess.run(
            [sys.executable, "-m", "builder", *map(str, arguments)],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert b"mod\\xe8le" in (done.stderr if status else done.stdout)
        assert (done.stdout if status else done.stderr) == b""
        if arguments[0] == "convert":
            assert (done.stdout + done.stderr).count(b"\n") == 1


def test_a_path_that_is_not_utf_8_is_named(
    tmp_path: Path, state: State, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / os.fsdecode(b"mod\xe8le.safetensors")
    path.write_bytes(safetensors.torch.save(state))
    assert main(["inspect", str(path)]) == 1
    assert b"needs a path in UTF-8: rename the file" in capsysbinary.readouterr().err


def test_convert_takes_a_prediction_type(
    source: Path, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    destination = tmp_path / "x.safetensors"
    assert main(["convert", str(source), str(destination), "--prediction-type", "v_prediction"]) == 0
    assert "predicts v_prediction" in inspected(destination, capsys)["architecture"]


def test_inspect_shows_the_declared_prediction(
    tmp_path: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(state, path, {"modelspec.prediction_type": "v"})
    assert inspected(path, capsys)["architecture"].endswith("predicts v_prediction")
    save_file(state | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, path)
    found = inspected(path, capsys)
    assert found["architecture"].endswith("predicts v_prediction, zero terminal SNR")
    assert found["unexpected"] == "none"
    save_file(state | {"v_pred": torch.tensor([])}, path, {"modelspec.prediction_type": "epsilon"})
    assert "contradicts itself" in fails(capsys, "inspect", str(path))


def test_failures_are_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in fails(capsys, "convert", str(tmp_path / "none.ckpt"))
    assert "does not exist" in fails(capsys, "inspect", str(tmp_path / "none.ckpt"))
    assert "is the source itself" in fails(capsys, "convert", str(source), str(source))
    text = tmp_path / "text\nfile.ckpt"
    text.write_text("hello")
    assert "not a complete safetensors" in fails(capsys, "convert", str(text))
    source.with_suffix(".safetensors").write_text("mine")
    assert "--force" in fails(capsys, "convert", str(source))


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["convert"],
        ["inspect"],
        ["convert", "a", "--dtype", "int8"],
        ["convert", "a", "--prediction-type", "flow"],
        ["paint", "a"],
        ["inspect", "a", "b"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: python -m builder" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "builder", "inspect", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path / 'none'} does not exist\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_is_shown_only_on_a_terminal(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["convert", str(source)]) == 0
    shown = terminal.getvalue()
    assert shown.startswith("\r")
    assert shown.endswith(" GB\n")
    assert "#" * 40 in shown


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The labels and values that `inspect` prints. Entries of lists are keys of their own."""
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:16].strip(): line[16:] for line in lines} | {line.strip(): "" for line in lines}


def test_inspect_describes_a_published_checkpoint(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(source, capsys)
    assert found["format"] == "PyTorch checkpoint (zip format)"
    assert f"({source.stat().st_size:,} bytes)" in found["size"]
    assert found["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert found["dtype"] == "fp32"
    assert found["architecture"] == "Stable Diffusion v1.x, 512 pixels, predicts epsilon"
    assert "2 layers of width 32" in found["text encoder"]
    assert "widths 32 64, 1 residual blocks a level, attention at levels 0" in found["unet"]
    assert "widths 32 32 64 64" in found["vae"]
    assert found["missing"] == "none"
    assert found["unexpected"] == "none"
    assert "some_tool.leftover" in found
    assert found["ema"].endswith(" tensors")


def test_inspect_describes_a_converted_file(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", str(source), "--dtype", "fp16"])
    capsys.readouterr()
    found = inspected(source.with_suffix(".safetensors"), capsys)
    assert found["format"] == "safetensors"
    assert found["dtype"] == "fp16"
    assert (found["missing"], found["unexpected"], found["misshaped"], found["ema"]) == ("none",) * 4
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert f"metadata        sd_core.source_sha256 = {digest}" in found


def test_inspect_names_what_is_wrong(
    save: Callable[..., Path], state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = dict(state)
    del changed[UNET_PREFIX + "out.0.bias"]
    changed[UNET_PREFIX + "out.0.weight"] = torch.zeros(5)
    changed[UNET_PREFIX + "odd"] = torch.zeros(5)
    changed[ema_name(UNET_PREFIX + "out.0.bias")] = torch.zeros(5)
    found = inspected(save(changed), capsys)
    assert (found["missing"], found["unexpected"], found["misshaped"]) == ("1", "1", "1")
    for line in ("out.0.bias", "odd", "out.0.weight: [5], not [32]"):
        assert UNET_PREFIX + line in found
    assert found["ema"] == "1 tensors"


def test_inspect_describes_inpainting_and_refuses_what_it_does_not_know(
    save: Callable[..., Path], state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    first = UNET_PREFIX + "input_blocks.0.0.weight"
    found = inspected(save(state | {first: torch.zeros(32, 9, 3, 3)}), capsys)
    assert "an inpainting checkpoint" in found["architecture"]
    assert found["misshaped"] == "none"
    path = save({"some.weight": torch.zeros(4, 4)})
    assert f"{path}: not recognized; its 1 tensors are some.weight" in fails(capsys, "inspect", str(path))
