from pathlib import Path

import pytest
import torch

from builder import compile as compiling
from builder.__main__ import main
from builder.compile import compile_checkpoint
from sd_core.engine.aot import folder_of, name_of
from sd_core.engine.graphs import Bucket
from sd_core.errors import ModelError
from sd_core.formats.load import load_networks
from sd_core.models.unet import UNet


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Bucket]:
    """Replaces the compiler, which takes half a minute a package. Returns the buckets that were compiled."""
    buckets: list[Bucket] = []

    def write(_network: UNet, bucket: Bucket, package: Path, _options: dict[str, object]) -> None:
        buckets.append(bucket)
        package.write_bytes(b"kernels")

    monkeypatch.setattr(compiling, "compile_package", write)
    return buckets


def test_packages_of_the_native_size_are_written_beside_the_checkpoint(
    tiny_checkpoint: Path, compiled: list[Bucket]
) -> None:
    packages = list(compile_checkpoint(tiny_checkpoint, [2, 1], device="cpu"))
    networks = load_networks(tiny_checkpoint, torch.device("cpu"), torch.float32)
    folder = folder_of(tiny_checkpoint.parent, networks.unet, torch.device("cpu"))
    side = networks.architecture.native_size // 8
    expected = [Bucket(1, 1, side, side, 77), Bucket(1, 2, side, side, 77), Bucket(2, 2, side, side, 77)]
    assert packages == [folder / name_of(bucket) for bucket in expected]
    assert sorted(folder.iterdir()) == sorted(packages)
    assert compiled == expected
    compiled.clear()
    assert list(compile_checkpoint(tiny_checkpoint, [1, 2], device="cpu")) == packages
    assert not compiled, "existing packages are kept"


def test_a_compiler_that_fails_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / tiny_checkpoint.name
    checkpoint.symlink_to(tiny_checkpoint)

    def fail(_network: UNet, _bucket: Bucket, package: Path, _options: dict[str, object]) -> None:
        package.write_bytes(b"half")
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling, "compile_package", fail)
    with pytest.raises(ModelError, match=r"unet-p1-r1-8x8-t77.pt2 could not be compiled: no compiler"):
        list(compile_checkpoint(checkpoint, [1], device="cpu"))
    assert not list(tmp_path.rglob("*.pt2"))


def test_unknown_row_counts_are_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"rows, none has 5"):
        list(compile_checkpoint(tiny_checkpoint, [1, 5, 7], device="cpu"))


def test_without_a_gpu_the_command_says_so(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["compile", str(tiny_checkpoint)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: device 'cuda' is not available") and error.count("\n") == 1


def test_the_command_prints_each_package(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(file: Path, rows: list[int], dtype: str) -> list[Path]:
        assert (file, rows, dtype) == (tiny_checkpoint, [2, 4], "bf16")
        return [Path("a.pt2"), Path("b.pt2")]

    monkeypatch.setattr(compiling, "compile_checkpoint", made)
    assert main(["compile", str(tiny_checkpoint), "--rows", "2", "4", "--dtype", "bf16"]) == 0
    assert capsys.readouterr().out == "a.pt2\nb.pt2\n"
