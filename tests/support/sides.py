"""Image-to-image by our engine and by a pipeline of diffusers, of one checkpoint with random weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sd_core.engine.engine import Engine
from sd_core.formats.detect import Architecture
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS
from sd_core.sampling.schedule import v1_schedule
from tests.support.random_weights import write_checkpoint
from tests.support.reference import reference_pipeline
from tests.support.reference_schedulers import as_reference, reference_scheduler
from tests.support.tokenizer_files import write_tokenizer

IMAGE = np.random.default_rng(0).integers(0, 256, (72, 64, 3), dtype=np.uint8)
REQUEST = Request(
    "a cat",
    negative_prompt="blurred",
    seed=3,
    width=64,
    height=72,
    steps=5,
    sampler="euler",
    schedule="default",
    image=IMAGE,
)


class Side:
    """One checkpoint in our engine, and its weights in pipelines of diffusers."""

    def __init__(self, engine: Engine, weights: dict[str, Tensor], architecture: Architecture, folder: Path) -> None:
        self.engine = engine
        self._weights, self._architecture, self._folder = weights, architecture, folder

    def ours(self, request: Request) -> np.ndarray:
        (image,) = self.engine.submit(request).result().images
        return image

    def pipeline(self, kind: type, request: Request) -> Any:
        """A pipeline of this class with the request's sampler and schedule."""
        scheduler = reference_scheduler(request.sampler, request.schedule, request.steps)
        return reference_pipeline(self._weights, self._architecture, self._folder, scheduler, kind)


@contextmanager
def side_of(folder: Path, architecture: Architecture) -> Iterator[Side]:
    """A checkpoint of this architecture, written into an empty folder."""
    path = folder / "random.safetensors"
    write_checkpoint(path, architecture, torch.float32)
    write_tokenizer(folder, [])
    engine = Engine([StableDiffusion.load(path, folder, "cpu", "fp32")], max_batch=4)
    yield Side(engine, load_file(path), architecture, folder)
    engine.close()


def pure_noise(request: Request, scheduler: Any, generator: torch.Generator) -> Tensor:
    """The latents that a pipeline with this scheduler takes to begin a request of `REQUEST`'s size as we do."""
    solver, noise = SOLVERS[request.sampler], torch.randn(1, 4, 9, 8, generator=generator)
    sigma = solver.grid(request.schedule, v1_schedule(), request.steps)[0]
    first: Tensor = as_reference(request.sampler, solver.noised(None, noise, sigma), sigma)
    return first / scheduler.init_noise_sigma
