from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worker import log
from worker.checks import check_gpu, check_outputs
from worker.settings import StartupError, read_settings


def test_the_outputs_directory_is_made(tmp_path: Path) -> None:
    for _ in range(2):
        check_outputs(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_an_outputs_directory_that_cannot_be_made_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="export SD_OUTPUTS="):
        check_outputs(tmp_path / "file" / "outputs")


def test_a_gpu_that_torch_cannot_use_ends_the_start_on_runpod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    log.configure("INFO")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elsewhere, on_runpod = (read_settings({"RUNPOD_POD_ID": pod}) for pod in ("", "pod"))
    check_gpu(on_runpod, tmp_path)
    (tmp_path / "nvidia0").touch()
    with pytest.raises(StartupError, match="has an NVIDIA GPU that torch"):
        check_gpu(on_runpod, tmp_path)
    assert "NVIDIA" not in capsys.readouterr().out
    check_gpu(elsewhere, tmp_path)
    assert "has an NVIDIA GPU that torch" in capsys.readouterr().out
    check_gpu(replace(on_runpod, device="cpu"), tmp_path)
