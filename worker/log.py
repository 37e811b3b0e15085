"""One structured line a job and one an error on standard output: JSON, so that a log collector can read them.

Prompts appear at DEBUG only, pictures never.
"""

import json
import logging
import re
import sys
import time
from typing import Any

LOGGERS = ("worker", "builder", "sd_core")
SDK_LEVELS = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR", "CRITICAL": "ERROR"}

_PICTURE = re.compile(r"[A-Za-z0-9+/=_-]{256,}")

log = logging.getLogger("worker")


class JSONFormatter(logging.Formatter):
    """`{"time", "level", "message", ...fields}`; a traceback is one more field: an error stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class StdoutHandler(logging.StreamHandler[Any]):
    """Writes to whatever `sys.stdout` is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stdout


def configure(level: str) -> None:
    """Send the project's own loggers to standard output at `level`; safe to call again."""
    handler = StdoutHandler()
    handler.setFormatter(JSONFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def configure_sdk(sdk_logger: Any, level: str) -> None:
    """Give runpod's logger our level, and let it print pictures as their length only.

    At its default level it prints jobs and results as they are.
    """
    write = sdk_logger.log

    def log_without_pictures(message: Any, message_level: str = "INFO", job_id: str | None = None) -> None:
        write(without_pictures(str(message)), message_level, job_id)

    sdk_logger.log = log_without_pictures
    sdk_logger.set_level(SDK_LEVELS[level])


def without_pictures(text: str) -> str:
    """`text` with every long run of base64 replaced by its length."""
    return _PICTURE.sub(lambda run: f"<{len(run.group()):,} characters of base64>", text)


def job_line(level: int, message: str, fields: dict[str, Any], exc_info: BaseException | None = None) -> None:
    """Write one line about a job, with `fields` beside the message."""
    log.log(level, message, extra={"fields": fields}, exc_info=exc_info)
