"""One job from its dict to its response: the way that the platform's handler and the HTTP server share."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sd_core.errors import OutOfMemory, SDError
from sd_core.request import Observe, Request, Result
from worker.api.job import Limits, ParsedJob, parse_request, uid_of
from worker.api.response import Response, failure, new_encoders, success
from worker.identity import ModelIdentity
from worker.io.data_uri import decode_base64
from worker.io.fetch import fetch, is_url
from worker.io.pictures import choose_size, decode_picture, resized
from worker.log import job_line, log
from worker.progress import Send, reporting
from worker.settings import Settings


class Drawing(Protocol):
    """What a job needs of the engine."""

    @property
    def failure(self) -> Exception | None: ...

    def submit(self, request: Request, observe: Observe | None = None) -> Future[Result]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Service:
    """A worker that is ready: a warmed engine, and all that is the same for every job."""

    settings: Settings
    engine: Drawing
    model: ModelIdentity
    limits: Limits
    encoders: Executor = field(default_factory=new_encoders)


class Internal(SDError):
    """Something that no job should be able to cause. Its cause is in the log."""


async def run_job(job: Mapping[str, Any], service: Service, send: Send | None = None) -> Response:
    """`{"input": {...}}` -> the response or the failure; raises nothing but the cancellation of its task.

    Where there is a `send`, it is given the messages about the job's progress, none of them after the return.
    """
    payload = job.get("input")
    uid = uid_of(payload)
    seen: dict[str, Any] = {"requestId": job.get("id"), "uid": uid}
    try:
        response = await _draw(payload, uid, service, send, seen)
    except asyncio.CancelledError:
        job_line(logging.INFO, "job cancelled", {**seen, "outcome": "cancelled"})
        raise
    except SDError as error:
        job_line(logging.ERROR, "job failed", {**seen, "outcome": error.code, "error": str(error)})
        return failure(error, uid)
    except MemoryError as error:
        known = OutOfMemory("the worker's memory does not hold this job; ask for fewer or smaller pictures")
        job_line(logging.ERROR, "job failed", {**seen, "outcome": known.code, "error": str(known)}, error)
        return failure(known, uid)
    except Exception as error:  # noqa: BLE001 - the worker lives on, and the cause goes to the log
        known_as = Internal("the worker failed at this job; its log names the cause under this uid")
        job_line(logging.ERROR, "job failed", {**seen, "outcome": "internal", "error": repr(error)}, error)
        return failure(known_as, uid)
    timings = {"timings_ms": response["timings_ms"], "outputs": response["outputs"]}
    job_line(logging.INFO, "job done", {**seen, "outcome": "success", **timings})
    return response


async def _draw(payload: object, uid: str, service: Service, send: Send | None, seen: dict[str, Any]) -> Response:
    """The job's life. `seen` collects what is known of it, for the one line that it leaves in the log."""
    parsed = parse_request(payload, service.limits, uid)
    request, notes = await _request(parsed, service)
    seen |= {
        "size": f"{request.width}x{request.height}",
        "steps": parsed.steps,
        "sampler": parsed.sampler_name,
        "seed": parsed.seed,
        "num_images": parsed.num_images,
        "image_to_image": request.image is not None,
    }
    log.debug("job drawn from", extra={"fields": {**seen, **_prompts(parsed)}})
    if parsed.preview and send is None:
        notes += ("preview did nothing: only jobs from RunPod's queue tell their progress",)
    async with reporting(send, parsed.preview, parsed.uid) as observe:
        result = await asyncio.wrap_future(service.engine.submit(request, observe))
        return await success(
            parsed,
            request,
            result,
            service.model.describe(),
            service.settings.outputs,
            service.settings.max_response_bytes,
            service.encoders,
            notes,
        )


def _prompts(parsed: ParsedJob) -> dict[str, str]:
    return {"prompt": parsed.prompt, "negative_prompt": parsed.negative_prompt}


async def _request(parsed: ParsedJob, service: Service) -> tuple[Request, tuple[str, ...]]:
    """What the engine is asked, with the job's picture fetched, decoded and resized, and notes on it."""
    limits = service.limits
    if parsed.image is None:
        return parsed.request(parsed.width or limits.native_size, parsed.height or limits.native_size), ()
    source = parsed.image.strip()
    private = service.settings.allow_private_urls
    data = await fetch(source, allow_private=private) if is_url(source) else source
    image, notes = await asyncio.to_thread(_picture, parsed, data, limits)
    return parsed.request(image.shape[1], image.shape[0], image), notes


def _picture(parsed: ParsedJob, data: bytes | str, limits: Limits) -> tuple[np.ndarray, tuple[str, ...]]:
    picture = decode_picture(decode_base64(data) if isinstance(data, str) else data)
    most = limits.max_pixels // parsed.num_images
    size = choose_size(picture.image.size, parsed.width, parsed.height, most)
    return resized(picture.image, size), picture.warnings
