"""The engine over plain HTTP: `POST /inference` and `GET /ping`, as the older server had them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from sd_core.errors import Busy, InvalidRequest, SDError
from worker.api.job import new_uid
from worker.api.response import failure
from worker.log import configure, log
from worker.service import Service, run_job
from worker.settings import Settings
from worker.startup import start

MAX_BODY_BYTES = 64 * 1024 * 1024
STATUS = {
    None: HTTPStatus.OK,
    "invalid_input": HTTPStatus.BAD_REQUEST,
    "invalid_image": HTTPStatus.BAD_REQUEST,
    "busy": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Of a response, by its error code; every other code is an internal error."""

RETRY_AFTER_S = 5
CLIENT_GONE = 499


class BodyTooLarge(InvalidRequest):
    """The body is larger than any job can be."""


class NotReady(SDError):
    """The model could not be loaded; the process is about to end."""


def serve(settings: Settings) -> None:
    """Answer on all interfaces until told to stop. Raises `StartupError` where no model can be loaded."""
    configure(settings.log_level)
    app = create_app(lambda: start(settings), lambda: setattr(server, "should_exit", True), settings.max_jobs)
    config = uvicorn.Config(app, host="0.0.0.0", port=settings.port, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    log.info("serving POST /inference and GET /ping", extra={"fields": {"port": settings.port}})
    server.run()
    loading: asyncio.Task[Service] | None = getattr(app.state, "loading", None)
    if loading is not None and loading.done() and not loading.cancelled():
        loading.result()


def create_app(load: Callable[[], Service], stop: Callable[[], None], max_jobs: int) -> FastAPI:
    """The application. `load` runs on a thread while `/ping` is answered; `stop` is called where it fails.

    Over `max_jobs` requests at once are answered `busy` before their bodies, which may be large, are read.
    """
    held = 0

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.loading = asyncio.create_task(asyncio.to_thread(load))
        app.state.loading.add_done_callback(lambda task: stop() if _failed(task) else None)
        yield

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.get("/ping")
    async def ping() -> Response:
        loading: asyncio.Task[Service] = app.state.loading
        return Response(status_code=200 if loading.done() and not _failed(loading) else 204)

    @app.post("/inference")
    async def inference(request: Request) -> Response:
        nonlocal held
        if held >= max_jobs:
            return await _answer(failure(Busy(f"{held} requests are under way already; try again later"), new_uid()))
        held += 1
        try:
            return await _inference(request)
        finally:
            held -= 1

    async def _inference(request: Request) -> Response:
        try:
            payload = await _payload(request)
        except BodyTooLarge as error:
            return await _answer(failure(error, new_uid()), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        except InvalidRequest as error:
            return await _answer(failure(error, new_uid()))
        await asyncio.wait({app.state.loading})
        if _failed(app.state.loading):
            return await _answer(failure(NotReady("the worker could not start; its log says why"), new_uid()))
        job = asyncio.create_task(run_job({"input": payload}, app.state.loading.result()))
        if await _client_left_during(job, request):
            return Response(status_code=CLIENT_GONE)
        return await _answer(await job)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> Response:
        known = InvalidRequest(
            f"no {request.method} {request.url.path[:100]} here; there are POST /inference and GET /ping"
        )
        return await _answer(failure(known, new_uid()), error.status_code)

    return app


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def _payload(request: Request) -> Any:
    """The body as JSON. Raises `InvalidRequest`."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise InvalidRequest(
            f"body: content type {kind[:80]!a} is not JSON; send the header 'Content-Type: application/json'"
        )
    too_large = BodyTooLarge(f"body: is over the limit of {MAX_BODY_BYTES:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:18]) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MAX_BODY_BYTES:
            raise too_large
    try:
        return await asyncio.to_thread(json.loads, bytes(body))
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"body: is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"body: is not JSON that can be read ({type(error).__name__})") from error


async def _client_left_during(job: asyncio.Task[Any], request: Request) -> bool:
    """Wait for the job to end; where the client hangs up before, cancel it and say so."""

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(hung_up())
    await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
    watch.cancel()
    if job.done():
        return False
    job.cancel()
    with suppress(asyncio.CancelledError):
        await job
    return True


async def _answer(response: dict[str, Any], status: int | None = None) -> Response:
    if status is None:
        status = STATUS.get(response.get("error_code"), HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    # Megabytes of base64: not on the event loop.
    content = await asyncio.to_thread(json.dumps, response)
    return Response(content, int(status), headers, media_type="application/json")
