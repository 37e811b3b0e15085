import json
import logging
from collections.abc import Iterator

import pytest
from runpod.serverless.modules.rp_logger import RunPodLogger

from worker.log import SDK_LEVELS, configure, configure_sdk, job_line, log, without_pictures


def test_a_job_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    job_line(logging.INFO, "job done", {"uid": "a\nb", "steps": 3})
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["level"], told["message"], told["uid"], told["steps"]) == ("INFO", "job done", "a\nb", 3)


def test_an_error_with_its_traceback_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("ERROR")
    try:
        raise RuntimeError("went wrong")
    except RuntimeError as error:
        job_line(logging.ERROR, "job failed", {"uid": "u"}, error)
    (line,) = capsys.readouterr().out.splitlines()
    assert "RuntimeError: went wrong" in json.loads(line)["traceback"]


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure("WARNING")
    log.info("not this")
    log.warning("but this")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["message"] == "but this"


def test_configuring_twice_does_not_write_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    configure("INFO")
    log.info("once")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_pictures_are_shown_as_their_length() -> None:
    assert without_pictures("a" * 255) == "a" * 255
    assert without_pictures(f"{{'image': '{'QUJD' * 1000}'}}") == "{'image': '<4,000 characters of base64>'}"


@pytest.fixture
def sdk_logger() -> Iterator[RunPodLogger]:
    logger = RunPodLogger()
    kept = dict(vars(logger))
    yield logger
    vars(logger).clear()
    vars(logger).update(kept)


@pytest.mark.parametrize("level", sorted(SDK_LEVELS))
def test_the_sdks_logger_takes_our_level_and_prints_no_picture(
    level: str, sdk_logger: RunPodLogger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_sdk(sdk_logger, level)
    assert sdk_logger.level == SDK_LEVELS[level]
    sdk_logger.debug(f"job: {'QUJD' * 1000}")
    sdk_logger.error("failed", "job-1")
    printed = capsys.readouterr().out
    assert "QUJD" not in printed
    assert ("4,000 characters of base64" in printed) == (level == "DEBUG")
    assert "job-1 | failed" in printed
