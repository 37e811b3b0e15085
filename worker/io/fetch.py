"""Pictures from URLs: only from public addresses, of limited size, in limited time, off the event loop."""

import asyncio
import re
import threading
import time
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

from sd_core.errors import Busy, InvalidImage
from worker.io.pictures import MAX_BYTES

TOTAL_SECONDS = 30.0
SILENT_SECONDS = 10
"""How long a server may say nothing, for one read."""

MAX_DOWNLOADS = 16
WAITING_SECONDS = 0.05
"""Between two looks for a free place among them."""

HEADERS = {"User-Agent": "sd15-worker", "Accept-Encoding": "identity"}

_downloads = threading.BoundedSemaphore(MAX_DOWNLOADS)


async def fetch(url: str, max_bytes: int = MAX_BYTES, total_seconds: float = TOTAL_SECONDS) -> bytes:
    """The body behind `url`. Raises `InvalidImage` that names the host, not the whole URL: it may hold a key.

    Runs on a thread of its own, which is left behind when time is up: a server that sends its headers byte by
    byte cannot be interrupted. The number of such threads is limited, and none keeps the process alive. Raises `Busy`
    where none of them ends while there is time.
    """
    host = _host(url)
    slots = _downloads
    started = time.monotonic()
    while not slots.acquire(blocking=False):
        if time.monotonic() - started > total_seconds:
            raise Busy(f"{MAX_DOWNLOADS} pictures are being fetched already; try again later")
        await asyncio.sleep(WAITING_SECONDS)
    future: Future[bytes] = Future()

    def work() -> None:
        try:
            if future.set_running_or_notify_cancel():  # on a busy machine time may be up before it began
                future.set_result(_download(url, host, max_bytes, time.monotonic() + total_seconds))
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the one who waits
            future.set_exception(error)
        finally:
            slots.release()

    threading.Thread(target=work, name="fetch", daemon=True).start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), total_seconds)
    except TimeoutError as error:
        raise _late(host, total_seconds) from error


def _download(url: str, host: str, max_bytes: int, deadline: float) -> bytes:
    # Here, because these bring the SDK and its dependencies with them, which only a job with a URL needs.
    from requests import RequestException
    from runpod.serverless.utils.rp_ssrf import SSRFError, safe_get
    from urllib3.exceptions import HTTPError

    try:
        with safe_get(url, timeout=SILENT_SECONDS, headers=HEADERS, max_bytes=max_bytes) as response:
            if response.status_code != 200:
                raise InvalidImage(f"image: {host} answered {response.status_code}")
            return _read(response, host, max_bytes, deadline)
    except InvalidImage:
        raise
    except SSRFError as error:
        # Its text may hold the URL of any hop.
        reason = re.sub(r"\s*[a-z]+://\S*", " the address", str(error))
        raise InvalidImage(f"image: {host} is not fetched from: {reason}") from error
    except (RequestException, HTTPError, OSError, ValueError) as error:
        raise InvalidImage(f"image: {host} could not be read from ({type(error).__name__})") from error


def _read(response: Any, host: str, max_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    # As the bytes come: waiting for a full chunk would outlast any deadline. And not decoded: a Content-Encoding,
    # which nobody asked for, may blow up a thousandfold.
    while block := response.raw.read1(65536, decode_content=False):
        data += block
        if len(data) > max_bytes:
            raise InvalidImage(f"image: what {host} sends is over the limit of {max_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise _late(host, None)
    return bytes(data)


def _late(host: str, seconds: float | None) -> InvalidImage:
    limit = f" of {seconds:g} s" if seconds is not None else ""
    return InvalidImage(f"image: {host} did not send the picture within the time limit{limit}")


def _host(url: str) -> str:
    try:
        host = urlsplit(url).hostname
    except ValueError as error:
        raise InvalidImage("image: the URL is not a valid one") from error
    if not host:
        raise InvalidImage("image: the URL names no host")
    return ascii(host[:80])[1:-1]
