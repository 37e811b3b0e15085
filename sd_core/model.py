"""The core as a library: a model that is loaded from a file and generates PIL images."""

import inspect
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any

import numpy as np
from PIL import Image

from sd_core.catalogue import Catalogue, folders_in
from sd_core.checks import check, require
from sd_core.engine.engine import Engine
from sd_core.fields import Field, Record
from sd_core.nested import MAX_SIDE
from sd_core.pipeline.complete import complete, find_model, implied, unusable, with_image, without_effect
from sd_core.pipeline.control import with_hints
from sd_core.pipeline.image_prompts import with_references
from sd_core.pipeline.model import ModelInfo, StableDiffusion
from sd_core.request import Request
from sd_core.volume import Library

# Guided images of native size that share a forward.
MAX_BATCH = 8

FIELDS = Record.of(Request)


def load(path: str | Path, device: str = "auto", dtype: str = "auto") -> "Model":
    """Load a v1.x checkpoint (.safetensors) that has `vocab.json` and `merges.txt` beside it.

    `device` is auto, cpu, cuda or mps, `dtype` auto, fp32, fp16 or bf16: auto takes the best device there is, and fp16
    on it, fp32 on a CPU. Prompts and fields may name the files in the folders beside the checkpoint: `loras`,
    `embeddings`, `controlnet`, `vae`, `upscalers`, `ip_adapters` and `clip_vision`. Raises `ModelError` that names the
    file, `DeviceError` the setting, that is wrong.
    """
    checkpoint = Path(path)
    library = Library(Catalogue(folders_in(checkpoint.parent)))
    return Model(StableDiffusion.load(checkpoint, checkpoint.parent, device, dtype), library)


class Model:
    """A loaded model. Its engine starts with the first image; jobs from several threads share forwards.

    `close`, or leaving a `with` block, ends the engine's threads; so does the end of the process.
    """

    def __init__(self, model: StableDiffusion, library: Library | None = None) -> None:
        self._model, self._library = model, library
        self._engine: Engine | None = None
        self._lock = threading.Lock()  # over _engine

    @property
    def info(self) -> ModelInfo:
        return self._model.info

    def generate(self, prompt: str, **fields: Any) -> list[Image.Image]:
        """Generate images of a prompt.

        The arguments are a job's fields, by the same names and within the same limits; `image` and `mask` are PIL
        images (RGB or L) or uint8 (height, width, 3). What the caller should know of the result is issued by
        `warnings.warn`. Raises `InvalidRequest` that names each argument that is wrong, `OutOfMemory` and `NotFinite`.
        """
        checked = check(FIELDS, {"prompt": prompt, **fields})
        require(checked.problems + unusable(checked))
        values = implied(checked)
        model = find_model(values["model"], [self.info.name])
        request, about = complete(Request, values, model, self.info.native_size), list[str]()
        if values["image"] is not None:
            max_pixels = MAX_SIDE * MAX_SIDE * request.num_images
            image, mask = _rgb(values["image"]), None if values["mask"] is None else _rgb(values["mask"])
            request, about = with_image(request, image, mask, values["width"], values["height"], max_pixels)
        hints = [None if unit.image is None else _rgb(unit.image) for unit in values["controlnets"]]
        request, about_hints = with_hints(request, hints)
        references = [None if unit.image is None else _rgb(unit.image) for unit in values["ip_adapters"]]
        request = with_references(request, references)
        future = self._running_engine().submit(request)
        try:
            result = future.result()
        except BaseException:  # including an interrupt: the images are no longer needed
            future.cancel()
            raise
        for text in without_effect(FIELDS, checked) + about + about_hints + result.warnings:
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
                self._engine = Engine([self._model], MAX_BATCH, library=self._library)
                # Also at the end of the process, which must not be torn down under the engine's thread.
                self._end = weakref.finalize(self, self._engine.close)
            return self._engine


def _annotation(field: Field) -> Any:
    if field.is_list:
        return GenericAlias(Sequence, field.type | Mapping[str, Any])
    return Image.Image | np.ndarray if field.type is np.ndarray else field.type


def signature_of(record: Record) -> inspect.Signature:
    """The signature of `Model.generate`: the prompt, then every other field as a keyword with its default."""
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for field in record:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if field.required else inspect.Parameter.KEYWORD_ONLY
        kind_of_value = _annotation(field)
        annotation = kind_of_value | None if field.nullable else kind_of_value
        default = inspect.Parameter.empty if field.required else field.left_out
        parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=annotation))
    return inspect.Signature(parameters, return_annotation=list[Image.Image])


Model.generate.__signature__ = signature_of(FIELDS)  # type: ignore[attr-defined] # read by help() and inspect


def _rgb(image: Image.Image | np.ndarray) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return picture.convert("RGB")
