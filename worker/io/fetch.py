"""Images from URLs: only from public addresses, of limited size, in limited time, off the event loop."""

import asyncio
import http.client
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from urllib.parse import urlsplit

from sd_core.errors import Busy, InvalidImage
from worker.io.addresses import printable
from worker.io.content_encoding import decode_body
from worker.io.http_client import get
from worker.io.limits import MAX_BYTES

TOTAL_SECONDS = 30.0
SILENT_SECONDS = 10.0  # that a server may take for one read
MAX_DOWNLOADS = 16
POLL_SECONDS = 0.05  # between two looks for a free slot among them
HEADERS = {"User-Agent": "sd15-worker", "Accept": "*/*", "Accept-Encoding": "identity"}
SLOTS = threading.BoundedSemaphore(MAX_DOWNLOADS)  # of the whole process: a thread that is stuck keeps its slot


def is_url(source: str) -> bool:
    return source[:8].lower().startswith(("http://", "https://"))


async def fetch(
    url: str,
    max_bytes: int = MAX_BYTES,
    total_seconds: float = TOTAL_SECONDS,
    *,
    allow_private: bool = False,
    slots: threading.BoundedSemaphore = SLOTS,
) -> bytes:
    """The body behind `url`. Raises `InvalidImage`, which names the host and not the URL: that may hold a key.

    Runs on a thread of its own, which is abandoned when time is up: a server that sends its headers byte by
    byte cannot be interrupted. `slots` limits the number of such threads, and none keeps the process alive. Raises
    `Busy` if no slot becomes free in time.
    """
    host = _host(url)
    started = time.monotonic()
    while not slots.acquire(blocking=False):
        if time.monotonic() - started > total_seconds:
            raise Busy(f"{MAX_DOWNLOADS} images are being fetched already; try again later")
        await asyncio.sleep(POLL_SECONDS)
    future: Future[bytes] = Future()

    def work() -> None:
        try:
            if future.set_running_or_notify_cancel():  # on a busy machine time may be up before it began
                deadline = time.monotonic() + total_seconds
                future.set_result(_download(url, host, max_bytes, deadline, allow_private=allow_private))
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the one who waits
            future.set_exception(error)
        finally:
            slots.release()

    threading.Thread(target=work, name="fetch", daemon=True).start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), total_seconds)
    except TimeoutError as error:
        raise _late(host, total_seconds) from error


def _download(url: str, host: str, max_bytes: int, deadline: float, *, allow_private: bool) -> bytes:
    try:
        response, connection = get(url, HEADERS, SILENT_SECONDS, allow_private=allow_private)
        with closing(connection), response:
            if response.status != 200:
                raise InvalidImage(f"image: {host} answered {response.status}")
            body = _read(response, host, max_bytes, deadline)
            return decode_body(body, response.getheader("Content-Encoding", ""), max_bytes)
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise InvalidImage(f"image: could not be fetched from {host} ({type(error).__name__})") from error


def _read(response: http.client.HTTPResponse, host: str, max_bytes: int, deadline: float) -> bytes:
    """The body as it was sent, still encoded."""
    if response.length is not None and response.length > max_bytes:
        raise _too_large(host, max_bytes)
    data = bytearray()
    while block := response.read1(65536):  # as the bytes come: waiting for a full block would outlast any deadline
        data += block
        if len(data) > max_bytes:
            raise _too_large(host, max_bytes)
        if time.monotonic() > deadline:
            raise _late(host, None)
    if response.length:  # the connection ended before the declared length
        raise http.client.IncompleteRead(b"", response.length)
    return bytes(data)


def _too_large(host: str, max_bytes: int) -> InvalidImage:
    return InvalidImage(f"image: what {host} sends is over the limit of {max_bytes:,} bytes")


def _late(host: str, seconds: float | None) -> InvalidImage:
    limit = f" of {seconds:g} s" if seconds is not None else ""
    return InvalidImage(f"image: {host} did not send the image within the time limit{limit}")


def _host(url: str) -> str:
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise InvalidImage("image: the URL is not valid") from error
    if not host:
        raise InvalidImage("image: the URL names no host")
    return printable(host)
