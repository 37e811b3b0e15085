"""The log on standard output: one JSON object per job and one per error, for log collectors.

Prompts appear only at DEBUG, images never.
"""

import json
import logging
import re
import sys
import time
from typing import Any

LOGGERS = ("worker", "builder", "sd_core")

_PICTURE = re.compile(r"[A-Za-z0-9+/=_-]{256,}")

log = logging.getLogger("worker")


class JSONFormatter(logging.Formatter):
    """`{"time", "level", "message", ...fields}`; a traceback is one more field, so that an error stays one line."""

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
    """Writes to what `sys.stdout` is at that time."""

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


def without_pictures(text: str) -> str:
    """`text` with every long run of base64 replaced by its length."""
    return _PICTURE.sub(lambda run: f"<{len(run.group()):,} characters of base64>", text)


def job_line(level: int, message: str, fields: dict[str, Any], exc_info: BaseException | None = None) -> None:
    """Write one line about a job, with `fields` beside the message."""
    log.log(level, message, extra={"fields": fields}, exc_info=exc_info)
