"""Every stage of the demo's training runs, one step each, on few images."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import load_file

from demo.assemble import WEIGHTS

pytestmark = pytest.mark.slow

STAGES = {
    "vocabulary": ["--out", "{out}"],
    "train_vae": ["--out", "{out}", "--steps", "1"],
    "train_diffusion": ["--out", "{out}", "--steps", "1", "--images", "8", "--batch", "4"],
    "train_text": ["--out", "{out}", "--steps", "1"],
    "train_decoder": ["--out", "{out}", "--steps", "1", "--batch", "2"],
    "train_colours": ["--out", "{out}", "--steps", "1", "--batch", "2", "--scenes", "4"],
    "assemble": ["--out", "{out}", "--weights", "{out}/weights"],
    "train_lora": ["--file", "{out}/lora.safetensors", "--steps", "1", "--images", "4", "--batch", "2"],
    "train_controlnet": ["--file", "{out}/control.safetensors", "--steps", "1", "--images", "4", "--batch", "2"],
}


def test_the_stages_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage, arguments in STAGES.items():
        monkeypatch.setattr(sys, "argv", [stage, *(argument.format(out=tmp_path) for argument in arguments)])
        import_module(f"demo.{stage}").main()
    for made, bundled in (
        ("weights/demo.safetensors", "demo.safetensors"),
        ("lora.safetensors", "loras/pink-teal.safetensors"),
        ("control.safetensors", "controlnet/canny.safetensors"),
    ):
        shapes = [
            {name: tensor.shape for name, tensor in load_file(file).items()}
            for file in (tmp_path / made, WEIGHTS / bundled)
        ]
        assert shapes[0] == shapes[1]
