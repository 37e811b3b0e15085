"""Compiled forwards, really compiled and loaded: for this CPU, whose kernels take half a minute to build."""

import logging
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from sd_core.engine import aot
from sd_core.engine.aot import (
    buckets_of,
    compile_package,
    device_name,
    flat_example,
    folder_of,
    load_packages,
    name_of,
)
from sd_core.engine.graphs import Bucket
from sd_core.models.unet import UNet, UNetConfig
from sd_core.models.unet_step import UNetStep

CONFIG = UNetConfig(channels=(32,), num_res_blocks=1, attention_levels=(0,), context_dim=32)
BUCKET = Bucket(1, 2, 8, 8, 77)
CPU = torch.device("cpu")


def network(seed: int = 0, config: UNetConfig = CONFIG) -> UNet:
    torch.manual_seed(seed)
    return UNet(config).eval().requires_grad_(requires_grad=False)


LOAD = """
import sys
from pathlib import Path
from sd_core.engine.aot import load_packages
from tests.engine.test_aot import network
print(len(load_packages(Path(sys.argv[1]), network())), "torch._inductor" in sys.modules)
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.slow
def test_one_package_serves_every_checkpoint_of_its_architecture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compile_package(network(), BUCKET, tmp_path / name_of(BUCKET), {})
    assert (tmp_path / name_of(BUCKET)).stat().st_size < 3_000_000, "a package holds no weights"
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["1", "False"], "a start does not import the compiler"
    with zipfile.ZipFile(tmp_path / name_of(BUCKET)) as package:
        sources = b"".join(package.read(name) for name in package.namelist() if name.endswith(".cpp"))
    assert b"g++" in sources and b"-mavx512" not in sources, "it also runs on processors with fewer instructions"
    assert platform.machine() != "x86_64" or b"-march=x86-64-v3" in sources
    (tmp_path / "unet-p1-r1-8x8-t77.pt2").write_bytes(b"cut off")
    (tmp_path / "notes.txt").write_text("left alone")
    for seed in (0, 1):
        unet = network(seed)
        with caplog.at_level(logging.WARNING, "sd_core"):
            loaded = load_packages(tmp_path, unet)
        assert loaded.keys() == {BUCKET}
        assert re.search(r"skipping the compiled package \S*unet-p1-r1-8x8-t77.pt2", caplog.text)
        latents, timesteps, rows, *read = flat_example(unet, BUCKET)
        inputs = (torch.randn_like(latents), timesteps + 500, rows, *(torch.randn_like(each) for each in read))
        with torch.inference_mode():
            torch.testing.assert_close(loaded[BUCKET](*inputs), UNetStep(unet)(*inputs), rtol=1e-4, atol=1e-5)


def test_without_a_folder_there_are_no_packages(tmp_path: Path) -> None:
    assert load_packages(tmp_path / "none", network()) == {}


def test_the_folder_depends_on_what_kernels_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = network()
    folder = folder_of(tmp_path, unet, CPU)
    assert folder == folder_of(tmp_path, network(1), CPU), "weights do not matter"
    assert folder.parent == tmp_path / "compiled"
    assert folder.name.startswith(f"{device_name(CPU)}-torch{torch.__version__}-float32-")
    others = {
        folder,
        folder_of(tmp_path, network().half(), CPU),
        folder_of(tmp_path, network(config=UNetConfig(channels=(64,), context_dim=32)), CPU),
    }
    monkeypatch.setattr(torch, "__version__", "99")
    others.add(folder_of(tmp_path, unet, CPU))
    monkeypatch.setattr(aot, "VERSION", aot.VERSION + 1)
    others.add(folder_of(tmp_path, unet, CPU))
    assert len(others) == 5


def test_a_gpu_is_named_by_its_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert device_name(torch.device("cuda")) == "sm90"


def test_buckets_exist_for_images_with_and_without_guidance() -> None:
    assert buckets_of([1, 2, 3], 64, 77) == [
        Bucket(1, 1, 64, 64, 77),
        Bucket(1, 2, 64, 64, 77),
        Bucket(2, 2, 64, 64, 77),
        Bucket(3, 3, 64, 64, 77),
    ]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:TensorFloat32")
def test_a_package_for_a_gpu_computes_what_the_network_does(tmp_path: Path) -> None:
    unet = network().cuda()
    compile_package(unet, BUCKET, tmp_path / name_of(BUCKET), {})
    latents, timesteps, rows, *read = flat_example(unet, BUCKET)
    inputs = (torch.randn_like(latents), timesteps + 500, rows, *(torch.randn_like(each) for each in read))
    with torch.inference_mode():
        answer = load_packages(tmp_path, unet)[BUCKET](*inputs)
        torch.testing.assert_close(answer, UNetStep(unet)(*inputs), rtol=1e-3, atol=1e-3)
