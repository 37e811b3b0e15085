"""What `python handler.py` does before the model is loaded: refuse a broken test job, begin to import the SDK.

The SDK reads the same command line itself, but only after the model is loaded, and a broken test job is a traceback.
"""

import argparse
import importlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path

from worker.settings import Settings, StartupError

TEST_FILE = Path("test_input.json")  # in the working directory, as the SDK looks for it


def prepare(arguments: Sequence[str], settings: Settings) -> None:
    """Check the test job, then import the SDK on a thread: it takes a second, of which it mostly waits.

    Raises `StartupError`.
    """
    check_test_job(arguments, settings.has_queue)
    threading.Thread(target=importlib.import_module, args=("worker.doors.runpod",), daemon=True).start()


def check_test_job(arguments: Sequence[str], has_queue: bool, file: Path = TEST_FILE) -> None:
    """Raise `StartupError` if the SDK is going to run a test job that is not a JSON object with an "input".

    That is the job of `--test_input`, or without it the one in `file` if there is no other source of jobs.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--test_input")
    parser.add_argument("--rp_serve_api", action="store_true")
    try:
        known, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise StartupError(f"{error}.") from error
    if known.test_input is not None:
        _check(known.test_input, "--test_input")
    elif not has_queue and not known.rp_serve_api:
        _check(_text(file), str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = f"There is no job: {file.absolute()} does not exist, and --test_input is not given."
        raise StartupError(message) from None
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"{file} is not JSON: it is not UTF-8.") from error


def _check(text: str, source: str) -> None:
    if not text.strip():
        raise StartupError(f"{source} is empty; a job is a JSON object such as {_EXAMPLE}.")
    try:
        job = json.loads(text)
    except json.JSONDecodeError as error:
        raise StartupError(f"{source} is not JSON: {error}.") from error
    except (ValueError, RecursionError) as error:  # numbers with thousands of digits, lists a thousand deep
        raise StartupError(f"{source} is JSON that cannot be read: {type(error).__name__}.") from error
    if not isinstance(job, dict):
        raise StartupError(f"{source} is not a JSON object; a job is one, such as {_EXAMPLE}.")
    if job.get("input") is None:
        raise StartupError(f'{source} has no "input"; a job is a JSON object such as {_EXAMPLE}.')


_EXAMPLE = '{"input": {"prompt": "..."}}'
