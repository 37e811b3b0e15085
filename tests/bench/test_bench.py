"""Every measurement runs on a tiny model and prints the fields that it promises."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sd_core.models.unet import UNetConfig
from tests.support.jobs import SAMPLERS, mixed_jobs
from tests.support.operations import ROWS, count_operations
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

COMMON = {"bench", "model", "device", "dtype", "rounds", "machine"}
PROMISED = {
    "text": {"ours_s", "transformers_s", "ratio", "difference"},
    "vae": {"ours_s", "diffusers_s", "ratio", "difference"},
    "step": {"ours_s", "diffusers_s", "ratio", "difference", "rounding"},
    "control": {"ours_s", "diffusers_s", "ratio", "difference", "plain_s", "share"},
    "peak": {"gflop_a_row", "step_s", "step_gflop_per_s", "peak_gflop_per_s", "efficiency", "products_gflop_per_s"},
    "reorders": {"steps", "largest_share", "reordering"},
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
    "deepcache": {"seconds", "speedup", "denoise_speedup"},
    "models": {"alternating_s", "sorted_s", "ratio", "together_ratio", "longest_step"},
    "prompts": {"short_s", "mixed_s", "ratio", "parse_s"},
    "samplers": {"seconds", "ratio", "waiting"},
    "adapters": {"seconds", "one", "four", "peft", "difference", "mb"},
}


SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that keeps the random models between measurements."""
    return tmp_path_factory.mktemp("bench")


def measure(name: str, cache: Path, *arguments: str, dtype: str = "fp32") -> dict[str, Any]:
    """`python -m bench.NAME --tiny`: what it prints, parsed."""
    common = ["--tiny", "--rounds", "1", "--device", "cpu", "--dtype", dtype, "--cache", str(cache)]
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", *common, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


@pytest.mark.parametrize("name", PROMISED)
def test_a_measurement_is_printed_as_json(name: str, cache: Path) -> None:
    printed = measure(name, cache)
    assert PROMISED[name] | COMMON <= printed.keys()
    assert printed["bench"] == name
    assert printed.get("ratio", 1) > 0
    assert printed.get("difference", 0) < 1e-4


@pytest.mark.parametrize("name", ["text", "vae", "step"])
def test_both_sides_compute_the_same_in_half_precision(name: str, cache: Path) -> None:
    assert measure(name, cache, dtype="bf16")["difference"] < 0.2


def test_adapters_measures_jobs_too(cache: Path) -> None:
    printed = measure("adapters", cache, "--demo")
    assert printed["seconds"].keys() == {"plain", "adapted", "one_by_one"}
    assert printed["jobs"] > 0
    assert printed["rate_over_one_by_one"] > 0


def test_throughput_measures_every_side_and_plots_it(cache: Path, tmp_path: Path) -> None:
    plot = tmp_path / "throughput.svg"
    options = ["--reference", "--batch", "2", "--concurrency", "2", "--jobs", "3", "--plot", str(plot)]
    printed = measure("throughput", cache, *options)
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
    assert sharing["continuous"].keys() == {"static_s_per_image", "continuous_s_per_image", "efficiency"}
    assert sharing["lone_job"]["equal"]
    assert printed["worker_gain_over_unet_gain"] > 0
    chart = ElementTree.parse(plot).getroot()
    lines = [line.attrib["points"].split() for line in chart.findall(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [1] * len(sides)
    texts = set(chart.itertext())
    assert sides | {"2", "0"} <= texts, "a name per side, a position per level, and an axis from zero"


def test_mixed_jobs_are_mixed_and_always_the_same() -> None:
    jobs = mixed_jobs(36, (15, 50), "a")
    assert {job["steps"] for job in jobs} == set(range(15, 51))
    assert {job["sampler"] for job in jobs} == set(SAMPLERS)
    assert {job["scale"] for job in jobs} == {1.0, 7.5}
    assert {job["num_images"] for job in jobs} == {1, 2}
    again = mixed_jobs(36, (15, 50), "b")
    assert [{**job, "uid": ""} for job in jobs] == [{**job, "uid": ""} for job in again]
    assert len({job["uid"] for job in jobs + again}) == 72


def test_operations_of_v15_are_counted_by_shape() -> None:
    """One row at 512x512: convolutions, linear layers and attention; a multiplication and its addition are two."""
    assert count_operations(UNetConfig(), side=64) / ROWS == pytest.approx(803.3e9, rel=1e-3)
