"""Pictures and what they were drawn from -> the response, within the size that the platform carries."""

import asyncio
import base64
import io
import json
import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_core.errors import SDError
from sd_core.request import Request, Result
from sd_core.sampling.registry import a1111_label, joined_name
from worker.api.job import ParsedJob
from worker.io.store import store

SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95, "method": 4},
}
MOST_ENCODERS = 4

UNSHOWN = ("image", "images", "parameters", "warnings")  # a warning may quote a prompt


class PayloadTooLarge(SDError):
    """The response would be larger than the platform carries."""

    code = "payload_too_large"


class Response(dict[str, Any]):
    """A response that shows itself without its pictures and prompts.

    The SDK formats every result into debug lines, on the event loop, whether or not it prints them, and it
    prints the result of a local test run at INFO.
    """

    def __repr__(self) -> str:
        return repr({key: value for key, value in self.items() if key not in UNSHOWN})


def new_encoders() -> ThreadPoolExecutor:
    """Threads for `success`, apart from asyncio's own, where a download or a preview may be waited for."""
    return ThreadPoolExecutor(min(MOST_ENCODERS, os.cpu_count() or 1), thread_name_prefix="encoder")


async def success(
    job: ParsedJob,
    request: Request,
    result: Result,
    model: dict[str, str | None],
    outputs: Path,
    max_bytes: int,
    encoders: Executor,
    warnings: tuple[str, ...] = (),
) -> Response:
    """Encode the pictures of one job, several at once, and store and pack them, all of it on `encoders`.

    Raises `StorageFailed`, and `PayloadTooLarge` where it would exceed `max_bytes`; the pictures are stored
    by then. Cancelled while it encodes, it stores nothing.
    """
    started = time.perf_counter()
    on_encoders = partial(asyncio.get_running_loop().run_in_executor, encoders)
    files = await asyncio.gather(
        *(
            on_encoders(encode, image, job.output_format, parameters_text(job, request, seed, model))
            for image, seed in zip(result.images, result.seeds, strict=True)
        )
    )
    stored = await on_encoders(store, outputs, job.uid, files, job.output_format)
    pictures = await on_encoders(_in_base64, files)
    single = len(pictures) == 1
    response = Response(
        message="success",
        uid=job.uid,
        **({"image": pictures[0]} if single else {"images": pictures}),
        **({"seed": result.seeds[0]} if single else {"seeds": result.seeds}),
        outputs=[str(path) for path in stored],
        parameters=parameters(job, request),
        timings_ms={},
        model=model,
        warnings=[*job.warnings, *warnings, *result.warnings],
    )
    timings = {**result.timings_ms, "respond": 1000 * (time.perf_counter() - started)}
    response["timings_ms"] = {name: round(spent, 1) for name, spent in timings.items()}
    await on_encoders(_check_size, response, max_bytes)
    return response


def _in_base64(files: list[bytes]) -> list[str]:
    return [base64.b64encode(file).decode("ascii") for file in files]


def _check_size(response: Response, max_bytes: int) -> None:
    # What the platform is sent holds the response under `output`. Not-a-number would be no JSON there.
    size = len(json.dumps({"output": response}, allow_nan=False))
    if size > max_bytes:
        raise PayloadTooLarge(
            f"the response has {size:,} bytes, over the limit of {max_bytes:,}; ask for fewer or smaller pictures, or "
            f"for output_format jpeg or webp. The pictures are stored: {', '.join(response['outputs'])}"
        )


def failure(error: SDError, uid: str) -> Response:
    """The response to a job that ends with `error`: plain strings only, all of them valid Unicode."""
    text = str(error).encode("utf-8", "backslashreplace").decode("utf-8")
    return Response(error=f"{error.code}: {text}", error_code=error.code, message="error", uid=uid)


def encode(image: np.ndarray, output_format: str, text: str) -> bytes:
    """uint8 (H, W, 3) -> a picture file; a PNG carries `text` in a chunk named `parameters`."""
    options = SAVE_OPTIONS[output_format]
    if output_format == "png":
        chunks = PngInfo()
        chunks.add_text("parameters", text)
        options = {**options, "pnginfo": chunks}
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=output_format, **options)
    return file.getvalue()


def parameters(job: ParsedJob, request: Request) -> dict[str, Any]:
    """Every value that the pictures were drawn with, under the names of a job's fields."""
    return {
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "steps": job.steps,
        "scale": job.scale,
        "do_scale": job.do_scale,
        "seed": job.seed,
        "sampler": joined_name(job.sampler, job.schedule),
        "schedule": job.schedule,
        "width": request.width,
        "height": request.height,
        "num_images": job.num_images,
        **({"strength": job.strength} if request.image is not None else {}),
        "output_format": job.output_format,
    }


def parameters_text(job: ParsedJob, request: Request, seed: int, model: dict[str, str | None]) -> str:
    """The same for one picture in the format that AUTOMATIC1111's web UI writes and reads."""
    fields = {
        "Steps": job.steps,
        "Sampler": a1111_label(job.sampler, job.schedule),
        "CFG scale": f"{job.guidance_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": (model["sha256"] or "")[:10],
        "Model": model["name"],
        "Denoising strength": f"{job.strength:g}" if request.image is not None else None,
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value not in (None, ""))
    negative = f"Negative prompt: {job.negative_prompt}\n" if job.negative_prompt else ""
    return f"{job.prompt}\n{negative}{line}"


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text
