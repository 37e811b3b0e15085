"""The worker over plain HTTP: `POST /inference` and `GET /ping`."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sd_core.errors import Busy, InvalidRequest, SDError
from worker.api.job import new_uid
from worker.api.response import failure
from worker.doors.body import BodyTooLarge, BodyTooSlow, Intake, check_headers, parse_json
from worker.doors.connection import ConnectionLimits, connection_class
from worker.log import configure, log
from worker.service import Service, run_job
from worker.settings import Settings
from worker.startup import start

# Of a failure, by its error code; every other code is an internal error.
STATUS = {
    "invalid_input": HTTPStatus.BAD_REQUEST,
    "invalid_image": HTTPStatus.BAD_REQUEST,
    "busy": HTTPStatus.SERVICE_UNAVAILABLE,
}
RETRY_AFTER_S = 5
CLIENT_GONE = 499


class NotReady(SDError):
    """The model could not be loaded; the process is about to end."""


def serve(settings: Settings) -> int:
    """Serve on all interfaces until SIGTERM or SIGINT. Returns the process's exit code.

    Jobs in flight at SIGTERM or SIGINT are answered. Raises `StartupError` if no model can be loaded.
    """
    configure(settings.log_level)

    def stop(*_signal: object) -> None:
        server.should_exit = True

    app = create_app(lambda: start(settings), stop, settings.max_jobs)
    limits = ConnectionLimits(max_connections=ConnectionLimits.max_connections + settings.max_jobs)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="0.0.0.0",
            port=settings.port,
            http=connection_class(limits),
            ws="none",
            log_level="warning",
            access_log=False,
        )
    )
    # After its shutdown uvicorn raises the signal again for the handlers that it found, by default a death by signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    log.info("serving POST /inference and GET /ping", extra={"fields": {"port": settings.port}})
    server.run()
    loading: asyncio.Task[Service] | None = getattr(app.state, "loading", None)
    if loading is None or not loading.done() or loading.cancelled():
        return 0
    return 0 if loading.result().engine.failure is None else 1


def create_app(load: Callable[[], Service], stop: Callable[[], None], max_jobs: int) -> FastAPI:
    """The application. `load` runs on a thread while `/ping` is answered; `stop` is called if it fails.

    At most `max_jobs` jobs are held at once. A request takes its place among them when its body has arrived; while
    there is none, requests are answered `busy` before their bodies, which may be large, are read.
    """
    intake = Intake(max_jobs)

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
        try:
            check_headers(request)
            body = await intake.read(request)
            with intake.job():
                payload = await parse_json(body)
                del body
                return await _run(payload, request, app.state.loading)
        except BodyTooLarge as error:
            return await _answer(failure(error, new_uid()), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        except BodyTooSlow as error:
            return await _answer(failure(error, new_uid()), HTTPStatus.REQUEST_TIMEOUT)
        except (Busy, InvalidRequest, NotReady) as error:
            return await _answer(failure(error, new_uid()))
        except ClientDisconnect:
            log.info("a client hung up before its request had arrived")
            return Response(status_code=CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> Response:
        known = InvalidRequest(
            f"there is no {request.method} {request.url.path[:100]}, only POST /inference and GET /ping"
        )
        return await _answer(failure(known, new_uid()), error.status_code)

    return app


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


async def _run(payload: Any, request: Request, loading: asyncio.Task[Service]) -> Response:
    """The response to one job, as soon as the model is loaded."""
    await asyncio.wait({loading})
    if _failed(loading):
        raise NotReady("the worker could not start; its log says why")
    job = asyncio.create_task(run_job({"input": payload}, loading.result()))
    if await _client_left_during(job, request):
        return Response(status_code=CLIENT_GONE)
    return await _answer(await job)


async def _client_left_during(job: asyncio.Task[Any], request: Request) -> bool:
    """Wait for the job to end. If the client hangs up before that, cancel the job and return True."""

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


async def _answer(response: dict[str, Any], status: HTTPStatus | int | None = None) -> Response:
    if status is None:
        code = response.get("error_code")
        status = HTTPStatus.OK if code is None else STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    # Megabytes of base64 would block the event loop.
    content = await asyncio.to_thread(json.dumps, response)
    return Response(content, int(status), headers, media_type="application/json")
