"""Generated images -> the response, within the size that the platform carries."""

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
from sd_core.fields import Record
from sd_core.pipeline.complete import acts
from sd_core.request import Result
from worker.api.infotext import as_json, infotext
from worker.api.job import JOB, Job
from worker.io.exif import with_user_comment
from worker.io.store import store

SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "jpeg": {"subsampling": 0},
    "webp": {"method": 4},
}
MAX_ENCODERS = 4
MAX_JPEG_SEGMENT = 65_533  # bytes

# Left out of a printed response: images and prompts, which a warning may quote.
UNPRINTED = ("image", "images", "parameters", "warnings")


class PayloadTooLarge(SDError):
    """The response is larger than the platform carries."""

    code = "payload_too_large"


class Response(dict[str, Any]):
    """A response whose `repr` leaves out its images and prompts.

    The SDK formats every result into debug lines, on the event loop, whether or not it prints them, and it
    prints the result of a local test run at INFO.
    """

    def __repr__(self) -> str:
        return repr({key: value for key, value in self.items() if key not in UNPRINTED})


def new_encoders() -> ThreadPoolExecutor:
    """Threads for `success`; asyncio's own may all be blocked by downloads and previews."""
    return ThreadPoolExecutor(min(MAX_ENCODERS, os.cpu_count() or 1), thread_name_prefix="encoder")


async def success(
    job: Job,
    result: Result,
    model: dict[str, str | None],
    outputs: Path,
    max_bytes: int,
    encoders: Executor,
) -> Response:
    """Encode the images of one job in parallel, store them and make the response, all of it on `encoders`.

    Raises `StorageFailed`, and `PayloadTooLarge` for a response over `max_bytes`, after the images are stored. If
    cancelled while images are encoded, nothing is stored.
    """
    started = time.perf_counter()
    on_encoders = partial(asyncio.get_running_loop().run_in_executor, encoders)
    kind = job.door.output_format
    made = await asyncio.gather(*(on_encoders(_file, job, result, model, index) for index in range(len(result.images))))
    files = [file for file, _ in made]
    stored = await on_encoders(store, outputs, job.door.uid, files, kind)
    images = await on_encoders(_in_base64, files)
    single = len(images) == 1
    lost = [] if all(holds for _, holds in made) else ["the parameters are too long for a JPEG to carry them"]
    response = Response(
        message="success",
        uid=job.door.uid,
        **({"image": images[0]} if single else {"images": images}),
        **({"seed": result.seeds[0]} if single else {"seeds": result.seeds}),
        outputs=[str(path) for path in stored],
        parameters=parameters(job),
        timings_ms={},
        model=model,
        warnings=[*job.warnings, *result.warnings, *lost],
    )
    timings = {**result.timings_ms, "respond": 1000 * (time.perf_counter() - started)}
    response["timings_ms"] = {name: round(spent, 1) for name, spent in timings.items()}
    await on_encoders(_check_size, response, max_bytes)
    return response


def _file(job: Job, result: Result, model: dict[str, str | None], index: int) -> tuple[bytes, bool]:
    """The file of one image, and whether it carries the image's parameters."""
    text = infotext(job.of_image(index), result.seeds[index], model, labels=result.labels)
    kind = job.door.output_format
    return encode(result.images[index], kind, text, job.door.output_quality), holds(kind, text)


def _in_base64(files: list[bytes]) -> list[str]:
    return [base64.b64encode(file).decode("ascii") for file in files]


def _check_size(response: Response, max_bytes: int) -> None:
    # The platform receives the response under `output`, as JSON, which has no NaN.
    size = len(json.dumps({"output": response}, allow_nan=False))
    if size > max_bytes:
        raise PayloadTooLarge(
            f"the response has {size:,} bytes, over the limit of {max_bytes:,}; ask for fewer or smaller images, or "
            f"for output_format jpeg or webp. The images are stored: {', '.join(response['outputs'])}"
        )


def failure(error: SDError, uid: str) -> Response:
    """The response to a job that failed with `error`: plain strings only, all of them valid Unicode."""
    text = str(error).encode("utf-8", "backslashreplace").decode("utf-8")
    return Response(error=f"{error.code}: {text}", error_code=error.code, message="error", uid=uid)


def encode(image: np.ndarray, output_format: str, text: str, quality: int = 95) -> bytes:
    """uint8 (H, W, 3) -> an image file that carries `text`, if it is not too long for a JPEG.

    A PNG has it in a chunk named `parameters`, JPEG and WebP have it as EXIF's UserComment, and a quality.
    """
    options = dict(SAVE_OPTIONS[output_format])
    if output_format == "png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("parameters", text)
    else:
        options["quality"] = quality
        if holds(output_format, text):
            options["exif"] = with_user_comment(text)
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=output_format, **options)
    return file.getvalue()


def holds(output_format: str, text: str) -> bool:
    """Whether a file of this format can carry the text."""
    return output_format != "jpeg" or len(with_user_comment(text)) <= MAX_JPEG_SEGMENT


def parameters(job: Job, record: Record = JOB) -> dict[str, Any]:
    """Every value that the images were generated with, under the names of a job's fields."""
    values = job.values
    shown = [field for field in record if field.shown and acts(field.acts_with, values)]
    return {field.name: as_json(field, values[field.name]) for field in shown} | {"sampler": job.sampler_name}
