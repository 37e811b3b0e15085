"""The command line: exit codes, one line of error, and what `inspect` prints."""

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from builder.__main__ import main
from sd_core.formats.keys import ema_name

State = dict[str, Tensor]
UNET = "model.diffusion_model."


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
    name = UNET + "out.0.bias"
    assert torch.equal(found[name], (state[name] + 1).bfloat16())
    name = "first_stage_model.quant_conv.bias"
    assert torch.equal(found[name], (state[name] * 2).bfloat16())


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
    "argv", [[], ["convert"], ["inspect"], ["convert", "a", "--dtype", "int8"], ["paint", "a"], ["inspect", "a", "b"]]
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


def test_a_bar_is_drawn_on_a_terminal_only(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["convert", str(source)]) == 0
    drawn = terminal.getvalue()
    assert drawn.startswith("\r")
    assert drawn.endswith(" GB\n")
    assert "#" * 40 in drawn


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The labels and values that `inspect` prints; entries of lists stand under themselves."""
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
    assert found["unexpected"] == "1"
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
    del changed[UNET + "out.0.bias"]
    changed[UNET + "out.0.weight"] = torch.zeros(5)
    changed[UNET + "odd"] = torch.zeros(5)
    changed[ema_name(UNET + "out.0.bias")] = torch.zeros(5)
    found = inspected(save(changed), capsys)
    assert (found["missing"], found["unexpected"], found["misshaped"]) == ("1", "1", "1")
    for line in ("out.0.bias", "odd", "out.0.weight: [5], not [32]"):
        assert UNET + line in found
    assert found["ema"] == "1 tensors"


def test_inspect_describes_inpainting_and_names_other_kinds(
    save: Callable[..., Path], state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    first = UNET + "input_blocks.0.0.weight"
    found = inspected(save(state | {first: torch.zeros(32, 9, 3, 3)}), capsys)
    assert "an inpainting checkpoint" in found["architecture"]
    assert found["misshaped"] == "none"
    path = save({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)})
    assert f"{path}: not a Stable Diffusion v1.x checkpoint: it is a LoRA" in fails(capsys, "inspect", str(path))
