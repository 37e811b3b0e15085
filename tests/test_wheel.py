"""The wheel contains the three packages and nothing else, and they can be imported from it."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

PACKAGES = ("sd_core", "builder", "worker")
# Not copied: too large, or left by earlier builds.
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "outputs", "shared", "*.egg-info")
IMPORT_ALL = """
import importlib, pkgutil, sys
target, *packages = sys.argv[1:]
sys.path.insert(0, target)
for package in packages:
    path = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(path, package + "."):
        imported = importlib.import_module(module.name)
        assert imported.__file__.startswith(target), imported.__file__
        print(module.name)
"""


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the repository stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    pip(
        "wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_contains_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert names == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_wheel_requires_what_pyproject_declares(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    required = metadata.get_all("Requires-Dist") or []
    running = {Requirement(text) for text in required if "extra ==" not in text}
    assert running == {Requirement(text) for text in project["dependencies"]}
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["License-Expression"] == "MIT"


def test_every_module_can_be_imported_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    pip("install", "--no-index", "--no-deps", "--target", str(target), str(wheel))
    command = [sys.executable, "-I", "-c", IMPORT_ALL, str(target), *PACKAGES]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"sd_core.engine.engine", "builder.convert", "worker.service"} <= set(done.stdout.split())
