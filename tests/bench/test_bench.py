"""Every measurement runs, at a size that measures nothing, and prints what it promises."""

import importlib
import json
from pathlib import Path

import pytest

COMMON = {"bench", "model", "device", "dtype", "rounds", "machine"}
PROMISED = {
    "text": {"ours_s", "transformers_s", "ratio", "difference"},
    "vae": {"ours_s", "diffusers_s", "ratio", "difference"},
    "step": {"ours_s", "diffusers_s", "ratio", "difference"},
    "start": {"ready_s", "ratio", "resident_mb", "weights_mb", "resident_beyond_torch_over_weights"},
    "first": {"first_s", "second_s", "ratio"},
    "demo": {"seconds", "timings_ms"},
    "batch": {"seconds", "ratio_to_batch_1"},
}


@pytest.mark.parametrize("name", PROMISED)
def test_prints_its_measurement_as_json(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module(f"bench.{name}")
    capsys.readouterr()
    script.main(["--tiny", "--rounds", "1", "--device", "cpu", "--dtype", "fp32", "--cache", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    assert PROMISED[name] | COMMON <= printed.keys()
    assert printed["bench"] == name
    assert printed.get("ratio", 1) > 0
    assert printed.get("difference", 0) < 1e-4


@pytest.mark.parametrize("name", ["text", "vae", "step"])
def test_both_sides_compute_the_same_in_half_precision(name: str, tmp_path: Path) -> None:
    script = importlib.import_module(f"bench.{name}")
    measured = script.main(["--tiny", "--rounds", "1", "--device", "cpu", "--dtype", "bf16", "--cache", str(tmp_path)])
    assert measured["difference"] < 0.2
