"""Request bodies: read within limits of size, time and memory, and counted as jobs only when they are complete."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Request

from sd_core.errors import Busy, InvalidRequest

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_ARRIVING_BYTES = 16 * MAX_BODY_BYTES  # of all bodies together that are not complete
BODY_S = 60.0


class BodyTooLarge(InvalidRequest):
    """The body is larger than any job can be."""


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""


class Intake:
    """Counts the jobs that are held and the bytes of bodies on their way. Belongs to one event loop."""

    def __init__(self, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._jobs = 0
        self._arriving_bytes = 0

    @contextmanager
    def job(self) -> Iterator[None]:
        """A place among the jobs. Raises `Busy` if there is none."""
        self._require_place()
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    async def read(self, request: Request) -> bytearray:
        """The request's body. It takes no place among the jobs, but is not read while there is none.

        Raises `Busy`, `BodyTooLarge`, `BodyTooSlow`, and starlette's `ClientDisconnect`.
        """
        self._require_place()
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared[:18]) > MAX_BODY_BYTES:
            raise _too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for block in request.stream():
                    self._arriving_bytes += len(block)
                    body += block
                    if len(body) > MAX_BODY_BYTES:
                        raise _too_large()
                    if self._arriving_bytes > MAX_ARRIVING_BYTES:
                        raise Busy("too many large requests are arriving; try again later")
        except TimeoutError:
            raise BodyTooSlow(f"body: did not arrive within {BODY_S:g} seconds") from None
        finally:
            self._arriving_bytes -= len(body)
        return body

    def _require_place(self) -> None:
        if self._jobs >= self._max_jobs:
            raise Busy(f"{self._jobs} jobs are already waiting or running; try again later")


def check_headers(request: Request) -> None:
    """Raise `InvalidRequest` if the body is declared to be something other than JSON. No declaration is as good."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise InvalidRequest(
            f"body: content type {kind[:80]!a} is not JSON; send the header 'Content-Type: application/json'"
        )


async def parse_json(body: bytearray) -> Any:
    """The body's JSON, parsed on a thread. Raises `InvalidRequest`."""
    try:
        return await asyncio.to_thread(json.loads, body)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"body: is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"body: is not JSON that can be read ({type(error).__name__})") from error


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"body: is over the limit of {MAX_BODY_BYTES:,} bytes")
