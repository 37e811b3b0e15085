"""Every measurement runs, at a size that measures nothing, and prints what it promises."""

import importlib
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import throughput
from bench.peak import ROWS, count_operations
from bench.plot import line_plot
from sd_core.models.unet import UNetConfig

COMMON = {"bench", "model", "device", "dtype", "rounds", "machine"}
PROMISED = {
    "text": {"ours_s", "transformers_s", "ratio", "difference"},
    "vae": {"ours_s", "diffusers_s", "ratio", "difference"},
    "step": {"ours_s", "diffusers_s", "ratio", "difference", "rounding"},
    "peak": {"gflop_a_row", "step_s", "step_gflop_per_s", "peak_gflop_per_s", "efficiency", "products_gflop_per_s"},
    "memory": {"forwards", "largest_share"},
    "start": {
        "ready_s",
        "ratio",
        "phases_ms",
        "resident_mb",
        "weights_mb",
        "resident_beyond_torch_over_weights",
    },
    "first": {"first_s", "second_s", "ratio"},
    "demo": {"seconds", "timings_ms"},
    "batch": {"seconds", "ratio_to_batch_1"},
    "samplers": {"seconds", "ratio", "waiting"},
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


def test_throughput_of_every_side_and_its_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "throughput.svg"
    asked = ["--reference", "--batch", "2", "--concurrency", "2", "--jobs", "3", "--plot", str(plot)]
    common = ["--tiny", "--rounds", "1", "--device", "cpu", "--dtype", "fp32", "--cache", str(tmp_path)]
    throughput.main([*common, *asked])
    printed = json.loads(capsys.readouterr().out)
    sides = {"batch_2", "batch_1", "diffusers"}
    assert printed.keys() >= COMMON
    assert printed["lone_job_s"].keys() == sides
    assert printed["concurrency"].keys() == {"2"}
    level = printed["concurrency"]["2"]
    assert level.keys() == sides | {"gain"}
    for side in sides:
        assert level[side]["images_per_s"] >= level[side]["jobs_per_s"] > 0
        assert level[side]["latency_s"]["p95"] >= level[side]["latency_s"]["median"] > 0
    sharing = printed["sharing"]
    for part in ("unet", "engine"):
        assert sharing[part].keys() == {"together_s", "one_by_one_s", "gain"}
    assert sharing["engine_gain_over_unet_gain"] > 0
    assert sharing["continuous"].keys() == {"static_s_a_picture", "continuous_s_a_picture", "efficiency"}
    assert sharing["lone_job"]["equal"]
    assert printed["worker_gain_over_unet_gain"] > 0
    drawing = ElementTree.parse(plot).getroot()
    assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == len(sides)


def test_mixed_jobs_are_mixed_and_always_the_same() -> None:
    jobs = throughput.mixed_jobs(36, (15, 50), "a")
    assert {job["steps"] for job in jobs} == set(range(15, 51))
    assert {job["sampler"] for job in jobs} == set(throughput.SAMPLERS)
    assert {job["scale"] for job in jobs} == {1.0, 7.5}
    assert {job["num_images"] for job in jobs} == {1, 2}
    again = throughput.mixed_jobs(36, (15, 50), "b")
    assert [{**job, "uid": ""} for job in jobs] == [{**job, "uid": ""} for job in again]
    assert len({job["uid"] for job in jobs + again}) == 72


def test_a_plot_has_a_line_a_side_and_escapes_names() -> None:
    drawing = ElementTree.fromstring(line_plot("a < b", "x", "y", [1, 2], {"one & two": [0.0, 2.0], "none": [0, 0]}))
    assert [text for text in drawing.itertext() if "one" in text] == ["one & two", "none"]
    assert len(drawing.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert {"0", "0.5", "1", "1.5", "2"} < set(drawing.itertext())


def test_operations_of_v15_are_counted_by_shape() -> None:
    """One row at 512x512: convolutions, linear layers and attention, each product with its sum as two."""
    assert count_operations(UNetConfig(), side=64) / ROWS == pytest.approx(803.3e9, rel=1e-3)


@pytest.mark.parametrize("name", ["text", "vae", "step"])
def test_both_sides_compute_the_same_in_half_precision(name: str, tmp_path: Path) -> None:
    script = importlib.import_module(f"bench.{name}")
    measured = script.main(["--tiny", "--rounds", "1", "--device", "cpu", "--dtype", "bf16", "--cache", str(tmp_path)])
    assert measured["difference"] < 0.2
