"""A worker with a stand-in for the engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.engine import StandInEngine
from worker.api.job import Limits
from worker.identity import ModelIdentity
from worker.service import Service
from worker.settings import Settings, read_settings

NATIVE_SIZE = 64


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers in these tests are on this machine; a proxy of the machine's must not stand between."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine()


@pytest.fixture
def make_service(engine: StandInEngine, tmp_path: Path) -> Callable[..., Service]:
    """A service on the stand-in engine, with the environment variables given."""

    def make(**environ: str) -> Service:
        settings: Settings = read_settings({"SD_OUTPUTS": str(tmp_path / "outputs"), **environ})
        identity = ModelIdentity("tiny", "ab" * 32, tmp_path / "tiny.safetensors")
        limits = Limits(settings.max_pixels, {"tiny": NATIVE_SIZE})
        return Service(settings, engine, {"tiny": identity}, limits)

    return make


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()


@pytest.fixture(scope="session")
def tiny_weights(smallest_checkpoint: Path) -> Path:
    """The checkpoint of a worker in these tests; its tokenizer lies beside it."""
    return smallest_checkpoint
