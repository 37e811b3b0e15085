"""Rules for the whole project: its modules, its dependencies, and the files that platforms read."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from worker import settings

ROOT = Path(__file__).resolve().parent.parent
RUNNING = ("handler.py", "sd_core", "builder", "worker")
OWN = {"handler", "sd_core", "builder", "worker", "bench", "demo", "tests"}
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()


def sources(*names: str) -> Iterator[Path]:
    for name in names:
        path = ROOT / name
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def read_requirements(name: str) -> dict[str, Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
    return {normalized(pin.name): pin for pin in pins}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_json(name: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((ROOT / name).read_text())
    return parsed


def instructions(word: str) -> list[str]:
    return [line.removeprefix(word).strip() for line in DOCKERFILE if line.startswith(word + " ")]


def test_modules_and_functions_stay_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in sources(*RUNNING, "bench", "demo", "tests")}
    assert {path: count for path, count in lines.items() if count > 300} == {}
    assert lines[ROOT / "handler.py"] <= 80
    for path in lines:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 55, f"{path}: {node.name} is longer than a screen"


def test_no_module_imports_a_private_name_of_another() -> None:
    for path in sources(*RUNNING, "bench", "demo", "tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OWN:
                private = [alias.name for alias in node.names if re.match(r"_(?!_)", alias.name)]
                assert not private, f"{path} imports {private} from {node.module}"


def test_only_the_settings_read_the_environment() -> None:
    def is_read(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            return isinstance(node.value, ast.Name) and node.value.id == "os"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            return any(alias.name in ("environ", "environb", "getenv") for alias in node.names)
        return False

    def reads_environment(path: Path) -> bool:
        return any(is_read(node) for node in ast.walk(ast.parse(path.read_text())))

    readers = [path.relative_to(ROOT) for path in sources(*RUNNING) if reads_environment(path)]
    assert readers == [Path("worker/settings.py")]


def test_product_code_imports_neither_the_handler_nor_test_packages() -> None:
    foreign = {"handler", "bench", "demo", "tests", "diffusers", "transformers", "open_clip"}
    for path in sources(*RUNNING):
        assert foreign.isdisjoint(imported(path)), path


def test_tests_do_not_import_the_benchmarks() -> None:
    for path in sources("tests"):
        assert "bench" not in imported(path), path


def test_importing_the_core_imports_neither_the_platform_nor_a_web_framework() -> None:
    script = (
        "import sys, sd_core.engine.engine\n"
        "print([n for n in ('runpod', 'boto3', 'fastapi', 'pydantic', 'diffusers', 'transformers', 'worker')"
        " if n in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "requirements-nodeps.txt"])
def test_every_requirement_is_pinned_without_an_address(name: str) -> None:
    pins = read_requirements(name)
    assert pins
    for pin in pins.values():
        assert pin.url is None
        assert re.fullmatch(r"==[0-9][0-9A-Za-z.]*", str(pin.specifier)), pin
    assert "://" not in (ROOT / name).read_text()


def test_pins_satisfy_the_ranges_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    running, developing = read_requirements("requirements.txt"), read_requirements("requirements-dev.txt")
    ranges = [(Requirement(text), running) for text in project["dependencies"]]
    ranges += [(Requirement(text), running | developing) for text in project["optional-dependencies"]["dev"]]
    for wanted, pins in ranges:
        pinned = next(iter(pins[normalized(wanted.name)].specifier)).version
        assert wanted.specifier.contains(pinned), f"{wanted} is pinned to {pinned}"
    assert running.keys().isdisjoint(developing)


def test_imported_packages_are_declared_or_come_with_declared_ones() -> None:
    """Packages that are imported only for their errors come with the declared package that raises them."""
    brought = {"requests": "runpod", "urllib3": "runpod", "starlette": "fastapi"}
    for name, owner in brought.items():
        assert name in {normalized(Requirement(text).name) for text in metadata.requires(owner) or ()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {normalized(Requirement(text).name) for text in project["dependencies"]}
    own = {"sd_core", "builder", "worker"}
    used: set[str] = set()
    for path in sources(*RUNNING):
        packages = imported(path) - sys.stdlib_module_names - own
        names = {{"PIL": "pillow"}.get(package, normalized(package)) for package in packages}
        assert names <= declared | brought.keys(), f"{path} imports {names - declared}, not in pyproject.toml"
        used |= names
    assert declared <= used, f"pyproject.toml declares {declared - used}, which nothing imports"


def test_docker_image_is_pinned_to_the_torch_of_the_requirements() -> None:
    torch = str(read_requirements("requirements.txt")["torch"].specifier).removeprefix("==")
    (base,) = instructions("ARG")
    assert base.startswith(f"BASE_IMAGE=pytorch/pytorch:{torch}-cuda")


def test_the_docker_context_contains_what_is_copied() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    assert copied == kept
    assert {"handler.py", "test_input.json", "sd_core", "builder", "worker", "demo/weights"} <= copied


def test_the_hub_files_agree() -> None:
    hub, tests = read_json(".runpod/hub.json"), read_json(".runpod/tests.json")
    offered = {entry["key"]: entry["input"] for entry in hub["config"]["env"]}
    assert offered.keys() == {entry["key"] for entry in tests["config"]["env"]}
    for preset in hub["config"]["presets"]:
        assert preset["defaults"].keys() == offered.keys()
    assert hub["config"]["allowedCudaVersions"] == tests["config"]["allowedCudaVersions"]
    known = (ROOT / "worker/settings.py").read_text()
    assert all(f'"{name}"' in known for name in offered)


def test_hub_defaults_and_presets_are_valid_settings() -> None:
    hub, tests = read_json(".runpod/hub.json"), read_json(".runpod/tests.json")
    environments = [{entry["key"]: entry["input"]["default"] for entry in hub["config"]["env"]}]
    environments += [preset["defaults"] for preset in hub["config"]["presets"]]
    environments += [{entry["key"]: entry["value"] for entry in tests["config"]["env"]}]
    for entry in hub["config"]["env"]:
        for option in entry["input"].get("options", ()):
            environments.append({entry["key"]: option["value"]})
    for environment in environments:
        settings.read_settings(environment)


def test_hub_tests_are_valid_jobs_of_the_demo_model() -> None:
    from worker.api.job import Limits, parse_request

    tests = read_json(".runpod/tests.json")
    environment = {entry["key"]: entry["value"] for entry in tests["config"]["env"]}
    assert environment["SD_WEIGHTS"] == "/app/demo/weights"
    for case in tests["tests"]:
        parse_request(case["input"], Limits(settings.DEFAULT_MAX_PIXELS, {"demo": 128}))


def test_make_lists_every_target_with_a_line_of_help() -> None:
    command = ["make", "--no-print-directory"]  # under make, a second one would print where it is
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (declared,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in listed] == declared.split()
    assert all(len(line.split()) > 3 for line in listed)


def test_ci_runs_the_checks_and_every_test_as_the_readme_says() -> None:
    """A stand-in for make records the targets, so nothing is installed or tested here."""
    script = f"make() {{ echo $1; }}; source {ROOT}/.ci/run"
    asked = subprocess.run(["bash", "-c", script, str(ROOT / ".ci/run")], capture_output=True, text=True, check=True)
    assert asked.stdout.split() == ["check", "test-all"]
    assert {"make check", "make test-all"} <= set(re.findall(r"make [a-z-]+", (ROOT / "README.md").read_text()))
    assert (ROOT / ".ci/run").stat().st_mode & 0o100
