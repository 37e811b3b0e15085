from pathlib import Path

import pytest

from sd_core.catalogue import FOLDERS, Kind
from worker.settings import (
    BUNDLED_WEIGHTS,
    DEFAULT_MAX_PIXELS,
    FOLDER_VARIABLES,
    Settings,
    SettingsError,
    read_settings,
)


def read(tmp_path: Path, **environ: str) -> Settings:
    return read_settings(environ, volume=tmp_path / "volume", workspace=tmp_path / "workspace")


def test_the_defaults_are_the_documented_ones(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert settings == Settings(
        weights=None,
        search=(tmp_path / "volume" / "weights", tmp_path / "workspace" / "weights", BUNDLED_WEIGHTS),
        checkpoints=(),
        outputs=Path("outputs").absolute(),
        on_runpod=False,
        volumes=(tmp_path / "volume", tmp_path / "workspace"),
    )
    assert (settings.device, settings.dtype, settings.log_level, settings.port) == ("auto", "auto", "INFO", 8000)
    assert (settings.max_pixels, settings.max_response_bytes) == (DEFAULT_MAX_PIXELS, 10_000_000)


def test_every_variable_is_read(tmp_path: Path) -> None:
    settings = read(
        tmp_path, SD_WEIGHTS="/w", SD_CHECKPOINT="a.ckpt", SD_OUTPUTS="/o", SD_DEVICE="CUDA", SD_DTYPE="bf16",
        SD_MAX_BATCH="3", SD_MAX_CONCURRENCY="5", SD_MAX_JOBS="6", SD_MAX_PIXELS="65536", SD_MAX_RESPONSE_MB="0.5",
        SD_MODELS_GB="12.5",
        LOG_LEVEL="warn", PORT="9000",
    )  # fmt: skip
    assert (settings.weights, settings.checkpoints, settings.outputs) == (Path("/w"), ("a.ckpt",), Path("/o"))
    assert (settings.device, settings.dtype, settings.log_level, settings.port) == ("cuda", "bf16", "WARNING", 9000)
    assert (settings.max_batch, settings.max_concurrency, settings.max_jobs) == (3, 5, 6)
    assert settings.max_pixels == 65536
    assert (settings.max_response_bytes, settings.models_bytes) == (500_000, 12_500_000_000)
    assert read(tmp_path).models_bytes is None, "what is free"


def test_a_worker_holds_at_least_the_jobs_that_it_takes_at_once(tmp_path: Path) -> None:
    assert read(tmp_path).max_jobs == 64
    assert read(tmp_path, SD_MAX_CONCURRENCY="100").max_jobs == 100
    with pytest.raises(SettingsError, match="SD_MAX_JOBS='3' is not a whole number from 4"):
        read(tmp_path, SD_MAX_CONCURRENCY="4", SD_MAX_JOBS="3")


def test_an_empty_variable_is_as_good_as_none(tmp_path: Path) -> None:
    names = ("SD_WEIGHTS", "SD_CHECKPOINT", "SD_OUTPUTS", "SD_DEVICE", "SD_MAX_BATCH", "SD_DEBUG", "PORT")
    assert read(tmp_path, **dict.fromkeys(names, " "), RUNPOD_POD_ID="") == read(tmp_path)


def test_a_mounted_volume_takes_the_outputs(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    assert read(tmp_path).outputs == tmp_path / "volume" / "outputs"
    assert read(tmp_path, SD_OUTPUTS="/elsewhere").outputs == Path("/elsewhere")


def test_several_checkpoints_have_a_colon_between_them(tmp_path: Path) -> None:
    assert read(tmp_path, SD_CHECKPOINT="b.safetensors: a file.ckpt :").checkpoints == ("b.safetensors", "a file.ckpt")
    assert read(tmp_path, SD_CHECKPOINT=" : ").checkpoints == ()


def test_folders_have_a_colon_between_them(tmp_path: Path) -> None:
    settings = read(tmp_path, SD_LORAS="/a: /b c :", SD_UPSCALERS="~/u", SD_VAES=" : ")
    assert settings.folders == {Kind.LORA: (Path("/a"), Path("/b c")), Kind.UPSCALER: (Path.home() / "u",)}


def test_every_kind_of_file_but_checkpoints_has_a_variable(tmp_path: Path) -> None:
    assert read(tmp_path, **dict.fromkeys(FOLDER_VARIABLES.values(), "/x")).folders.keys() == FOLDERS.keys()


def test_the_queue_and_the_realtime_port_are_sources_of_jobs(tmp_path: Path) -> None:
    assert not read(tmp_path, RUNPOD_POD_ID="pod").has_queue
    assert read(tmp_path, RUNPOD_WEBHOOK_GET_JOB="url").has_queue
    assert read(tmp_path, RUNPOD_REALTIME_PORT="8000").has_queue


@pytest.mark.parametrize("name", ["RUNPOD_WEBHOOK_GET_JOB", "RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID"])
def test_on_runpod_the_demo_model_is_not_looked_for(tmp_path: Path, name: str) -> None:
    settings = read(tmp_path, **{name: "x"})
    assert settings.on_runpod
    assert BUNDLED_WEIGHTS not in settings.search
    assert len(settings.search) == 2


def test_the_sdks_own_options_do_not_make_it_runpod(tmp_path: Path) -> None:
    assert not read(tmp_path, RUNPOD_LOG_LEVEL="INFO", RUNPOD_SKIP_GPU_CHECK="true").on_runpod


@pytest.mark.parametrize("name", ["SD_DEBUG", "FLASK_DEBUG"])
@pytest.mark.parametrize(("value", "level"), [("1", "DEBUG"), ("True", "DEBUG"), ("0", "INFO"), ("off", "INFO")])
def test_debugging_is_a_switch(tmp_path: Path, name: str, value: str, level: str) -> None:
    assert read(tmp_path, **{name: value}).log_level == level


BAD = {
    "SD_CHECKPOINT": "../a.safetensors",
    "SD_DEVICE": "tpu",
    "SD_DTYPE": "int8",
    "SD_MAX_BATCH": "0",
    "SD_MAX_CONCURRENCY": "two",
    "SD_MAX_JOBS": "0",
    "SD_MAX_PIXELS": "4095",
    "SD_MAX_RESPONSE_MB": "nan",
    "SD_MODELS_GB": "0",
    "SD_DEBUG": "maybe",
    "LOG_LEVEL": "LOUD",
    "PORT": "65536",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [*BAD.items(), ("SD_CHECKPOINT", ".."), ("SD_CHECKPOINT", "a.ckpt:b/c.ckpt"), ("SD_CHECKPOINT", "a.ckpt:.."),
     ("SD_MAX_BATCH", "1.5"), ("SD_MAX_BATCH", "9" * 5000),
     ("SD_MAX_RESPONSE_MB", "0"), ("SD_MAX_RESPONSE_MB", "-1"), ("SD_MAX_RESPONSE_MB", "inf"),
     ("SD_MAX_RESPONSE_MB", "ten"), ("SD_MODELS_GB", "all"), ("PORT", "-1")],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, **{name: value})
    assert f"{name}={value[:80]!r}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_every_bad_value_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, **BAD)
    for name in BAD:
        assert f"  {name}=" in str(caught.value)


def test_private_urls_are_allowed_by_the_platforms_own_switch() -> None:
    assert not read_settings({}).allow_private_urls
    assert read_settings({"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}).allow_private_urls
