"""One job from its dict to its response: what the platform's handler and the HTTP server share."""

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from PIL import Image

from sd_core.errors import InvalidImage, OutOfMemory, SDError
from sd_core.pipeline.complete import with_image
from sd_core.pipeline.control import with_hints
from sd_core.pipeline.image_prompts import with_references
from sd_core.request import Observe, Request, Result
from worker.api.job import Job, Limits, parse_request, uid_of
from worker.api.parameters import picture_of, with_text
from worker.api.response import Response, failure, new_encoders, success
from worker.identity import ModelIdentity
from worker.io.data_uri import decode_base64
from worker.io.fetch import fetch, is_url
from worker.io.frames import BLACK, WHITE
from worker.io.metadata import generation_text
from worker.io.pictures import decode_picture
from worker.log import job_line, log
from worker.progress import Send, reporting
from worker.settings import Settings


class JobEngine(Protocol):
    """The part of `sd_core.Engine` that the worker uses."""

    @property
    def failure(self) -> Exception | None: ...

    def submit(self, request: Request, observe: Observe | None = None) -> Future[Result]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Service:
    """A worker that is ready: a warmed engine, and what all jobs share."""

    settings: Settings
    engine: JobEngine
    identities: Mapping[str, ModelIdentity]  # by the names of `limits.native_sizes`
    limits: Limits
    encoders: Executor = field(default_factory=new_encoders)


class Internal(SDError):
    """An error that no job should be able to cause; the log has the details."""


async def run_job(job: Mapping[str, Any], service: Service, send: Send | None = None) -> Response:
    """`{"input": {...}}` -> the response or the failure; raises only `CancelledError`, if its task is cancelled.

    `send` is called with the messages about the job's progress, never after the return.
    """
    payload = job.get("input")
    uid = uid_of(payload)
    logged: dict[str, Any] = {"requestId": job.get("id"), "uid": uid}
    try:
        response = await _generate(payload, uid, service, send, logged)
    except asyncio.CancelledError:
        job_line(logging.INFO, "job cancelled", {**logged, "outcome": "cancelled"})
        raise
    except SDError as error:
        job_line(logging.ERROR, "job failed", {**logged, "outcome": error.code, "error": str(error)})
        return failure(error, uid)
    except MemoryError as error:
        known = OutOfMemory("this job does not fit into the worker's memory; ask for fewer or smaller images")
        job_line(logging.ERROR, "job failed", {**logged, "outcome": known.code, "error": str(known)}, error)
        return failure(known, uid)
    except Exception as error:  # noqa: BLE001 - the worker goes on, and the cause goes to the log
        unknown = Internal("the worker failed on this job; its log has the cause under this uid")
        job_line(logging.ERROR, "job failed", {**logged, "outcome": "internal", "error": repr(error)}, error)
        return failure(unknown, uid)
    timings = {"timings_ms": response["timings_ms"], "outputs": response["outputs"]}
    job_line(logging.INFO, "job done", {**logged, "outcome": "success", **timings})
    return response


async def _generate(payload: object, uid: str, service: Service, send: Send | None, logged: dict[str, Any]) -> Response:
    """Parse the job, load its image, generate, respond. `logged` collects what the log says of the job."""
    payload = await _with_recorded_text(payload, service)
    job = await _with_its_images(parse_request(payload, service.limits, uid), service)
    request = job.request
    logged |= {
        "size": "{}x{}".format(*request.generated_size),
        "steps": request.steps,
        "sampler": job.sampler_name,
        "seed": request.seed,
        "num_images": request.num_images,
        "image_to_image": request.image is not None,
    }
    prompts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    log.debug("job to generate", extra={"fields": {**logged, **prompts}})
    if job.door.preview and send is None:
        job = _with_warnings(job, "preview did nothing: progress is sent only for jobs from RunPod's queue")
    identity = _identity(service, request)  # as of now: its file may be replaced while it is used
    async with reporting(send, job.door.preview, job.door.uid) as observe:
        result = await asyncio.wrap_future(await _submitted(service, request, observe))
        return await success(
            job,
            result,
            identity.describe(),
            service.settings.outputs,
            service.settings.max_response_bytes,
            service.encoders,
        )


async def _submitted(service: Service, request: Request, observe: Observe | None) -> Future[Result]:
    """Submit the job on another thread, because its files are looked for on a volume that may be slow."""
    submitting = service.encoders.submit(service.engine.submit, request, observe)
    try:
        return await asyncio.wrap_future(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_cancel)
        raise


def _cancel(submitting: Future[Future[Result]]) -> None:
    """Cancel the job that was submitted when nobody waited for it any longer."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


def _identity(service: Service, request: Request) -> ModelIdentity:
    assert request.model is not None  # parsing names one
    return service.identities[request.model]


def _with_warnings(job: Job, *warnings: str) -> Job:
    return replace(job, warnings=(*job.warnings, *warnings))


async def _with_its_images(job: Job, service: Service) -> Job:
    """The job with its image, mask, control images and image prompts, fetched and decoded, and warnings about them."""
    sources = {"image": job.source, "mask": job.mask_source if job.source is not None else None}
    sources |= {f"controlnets[{index}].image": source for index, source in enumerate(job.hint_sources)}
    sources |= {f"ip_adapters[{index}].image": source for index, source in enumerate(job.reference_sources)}
    data: dict[str, bytes | str] = {}
    for name, source in sources.items():
        if source is not None:
            with _about(name):
                data[name] = await _data_of(source, service)
    return await asyncio.to_thread(_decoded, job, data, service.limits) if data else job


async def _data_of(source: str, service: Service) -> bytes | str:
    """The file behind a URL; any other source as it is."""
    source = source.strip()
    return await fetch(source, allow_private=service.settings.allow_private_urls) if is_url(source) else source


async def _with_recorded_text(payload: object, service: Service) -> object:
    """The payload with the text that a picture carries in the place of the picture, if `parameters` is one."""
    source = picture_of(payload)
    if source is None:
        return payload
    assert isinstance(payload, dict)  # it has a picture
    with _about("parameters"):
        text = await asyncio.to_thread(_text_of, await _data_of(source, service))
    return with_text(payload, text)


def _text_of(data: bytes | str) -> str:
    return generation_text(decode_base64(data) if isinstance(data, str) else data)


def _decoded(job: Job, data: Mapping[str, bytes | str], limits: Limits) -> Job:
    """The job with the images that these files are, by the names of their fields."""
    images: dict[str, Image.Image] = {}
    warnings: list[str] = []
    for name, file in data.items():
        images[name], about = _decode(file, BLACK if name == "mask" else WHITE, name)
        warnings += about
    request = job.request
    if "image" in images:
        size = job.width, job.height
        request, about_image = with_image(request, images["image"], images.get("mask"), *size, limits.max_pixels)
        warnings += about_image
    hints = [images.get(f"controlnets[{index}].image") for index in range(len(job.hint_sources))]
    request, about_hints = with_hints(request, hints)
    references = [images.get(f"ip_adapters[{index}].image") for index in range(len(job.reference_sources))]
    request = with_references(request, references)
    return _with_warnings(replace(job, request=request), *warnings, *about_hints)


def _decode(data: bytes | str, ground: int, name: str) -> tuple[Image.Image, tuple[str, ...]]:
    """The image of a field of this name, transparency laid on `ground`, and warnings about it."""
    with _about(name):
        picture = decode_picture(decode_base64(data) if isinstance(data, str) else data, ground)
    return picture.image, tuple(_renamed(warning, name) for warning in picture.warnings)


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Errors about an image are about the field of this name."""
    try:
        yield
    except InvalidImage as error:
        raise InvalidImage(_renamed(str(error), name)) from error


def _renamed(text: str, name: str) -> str:
    return re.sub(r"^image\b", name, text)
