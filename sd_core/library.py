"""The core as a library: a model that is loaded from a file and generates PIL images."""

import inspect
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sd_core.checks import check, require
from sd_core.engine.engine import Engine
from sd_core.fields import Record
from sd_core.pipeline.complete import complete, find_model, with_image, without_effect
from sd_core.pipeline.model import ModelInfo, StableDiffusion
from sd_core.request import MAX_SIDE, Request

# Guided images of native size that share a forward.
MAX_BATCH = 8

FIELDS = Record.of(Request)


def load(path: str | Path, device: str = "auto", dtype: str = "auto") -> "Model":
    """Load a v1.x checkpoint (.safetensors) that has `vocab.json` and `merges.txt` beside it.

    `device` is auto, cpu, cuda or mps, `dtype` auto, fp32, fp16 or bf16: auto is the best device available, and fp32 on
    a CPU, fp16 elsewhere. Raises `ModelError`, which names the bad file, or `DeviceError`, which names the bad setting.
    """
    checkpoint = Path(path)
    return Model(StableDiffusion.load(checkpoint, checkpoint.parent, device, dtype))


class Model:
    """A loaded model. Its engine starts with the first image; jobs from several threads share forwards.

    `close`, or leaving a `with` block, ends the engine's threads; so does the end of the process.
    """

    def __init__(self, model: StableDiffusion) -> None:
        self._model = model
        self._engine: Engine | None = None
        self._lock = threading.Lock()  # over _engine

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    def generate(self, prompt: str, **fields: Any) -> list[Image.Image]:
        """Generate images of a prompt.

        The arguments are a job's fields, by the same names and within the same limits; `image` is a PIL image (RGB or
        L) or an array uint8 (height, width, 3). Warnings about the result are issued by `warnings.warn`. Raises
        `InvalidRequest`, which names each bad argument, `OutOfMemory` and `NotFinite`.
        """
        checked = check(FIELDS, {"prompt": prompt, **fields})
        require(checked.problems)
        values = checked.values
        model = find_model(values["model"], [self.info.name])
        request = complete(Request, values, model, self.info.native_size)
        if values["image"] is not None:
            max_pixels = MAX_SIDE * MAX_SIDE * request.num_images
            request = with_image(request, _rgb(values["image"]), values["width"], values["height"], max_pixels)
        future = self._running_engine().submit(request)
        try:
            result = future.result()
        except BaseException:  # including an interrupt: the images are no longer needed
            future.cancel()
            raise
        for text in without_effect(FIELDS, checked) + result.warnings:
            warnings.warn(text, stacklevel=2)
        return [Image.fromarray(image) for image in result.images]

    def close(self) -> None:
        """Finish what is running and end the engine's threads. A later `generate` starts them again."""
        with self._lock:
            if self._engine is not None:
                self._end()
                self._engine = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running_engine(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = Engine([self._model], MAX_BATCH)
                # Also at the end of the process: the interpreter must not be torn down while the engine's thread runs.
                self._end = weakref.finalize(self, self._engine.close)
            return self._engine


def signature_of(record: Record) -> inspect.Signature:
    """The signature of `Model.generate`: the prompt, then every other field as a keyword with its default."""
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in record:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if field.required else inspect.Parameter.KEYWORD_ONLY
        kind_of_value = Image.Image | np.ndarray if field.type is np.ndarray else field.type
        annotation = kind_of_value | None if field.nullable else kind_of_value
        default = inspect.Parameter.empty if field.required else field.left_out
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=annotation))
    return inspect.Signature(parameters, return_annotation=list[Image.Image])


Model.generate.__signature__ = signature_of(FIELDS)  # type: ignore[attr-defined] # read by help() and inspect


def _rgb(image: Image.Image | np.ndarray) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return picture.convert("RGB")
