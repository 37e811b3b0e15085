"""A broken test job is refused before the model is loaded."""

import json
from pathlib import Path

import pytest

from worker.doors.command_line import check_test_job
from worker.settings import StartupError

GOOD = '{"input": {"prompt": "x"}}'
BROKEN = {
    "{bad": "is not JSON: Expecting property name",
    "": "is empty",
    " \n": "is empty",
    "[1]": "is not a JSON object",
    '"x"': "is not a JSON object",
    "null": "is not a JSON object",
    "0": "is not a JSON object",
    "{}": 'has no "input"',
    '{"inputs": {}}': 'has no "input"',
    '{"input": null}': 'has no "input"',
    GOOD + GOOD: "is not JSON: Extra data",
    "[" * 100_000: "is JSON that cannot be read: RecursionError",
    '{"input": ' + "9" * 5000 + "}": "is JSON that cannot be read: ValueError",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test_input.json"


def refusal(arguments: list[str], file: Path, has_queue: bool = False) -> str:
    with pytest.raises(StartupError) as caught:
        check_test_job(arguments, has_queue, file)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("has_queue", [False, True])
@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_job_on_the_command_line(file: Path, text: str, has_queue: bool) -> None:
    file.write_text(GOOD)
    for arguments in (["--test_input", text], [f"--test_input={text}"], ["--rp_debugger", "--test_in", text]):
        assert refusal(arguments, file, has_queue).startswith(f"--test_input {BROKEN[text]}")


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_job_in_the_file(file: Path, text: str) -> None:
    file.write_text(text)
    assert refusal([], file).startswith(f"{file} {BROKEN[text]}")


def test_a_file_that_is_not_there_or_not_readable(file: Path) -> None:
    assert f"{file} does not exist, and --test_input is not given" in refusal([], file)
    file.write_bytes(b"\xff\xfe")
    assert refusal([], file) == f"{file} is not JSON: it is not UTF-8."
    file.unlink()
    file.mkdir()
    assert refusal([], file).startswith(f"{file} cannot be read: ")


def test_an_argument_without_its_value(file: Path) -> None:
    assert "--test_input: expected one argument" in refusal(["--test_input"], file)
    assert "--test_input: expected one argument" in refusal(["--test_input", "--rp_serve_api"], file)


def test_good_jobs_pass_and_the_file_counts_only_without_another_source(file: Path) -> None:
    file.write_text("{bad")
    check_test_job(["--test_input", GOOD], False, file)
    check_test_job([], True, file)
    check_test_job(["--rp_serve_api", "--rp_api_port", "1"], False, file)
    file.write_text(json.dumps({"input": []}))  # a job that the worker itself refuses
    check_test_job(["--rp_log_level", "DEBUG"], False, file)
