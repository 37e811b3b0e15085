import json
import logging

import pytest

from worker.log import configure, job_line, log, without_pictures


def test_a_job_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO")
    job_line(logging.INFO, "job done", {"uid": "a\nb", "steps": 3})
    (line,) = capsys.readouterr().out.splitlines()
    logged = json.loads(line)
    assert (logged["level"], logged["message"], logged["uid"], logged["steps"]) == ("INFO", "job done", "a\nb", 3)


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
