"""A directory of small checkpoints, of which an engine has loaded the first."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sd_core.catalogue import Catalogue, Kind, folders_in
from sd_core.engine.checkpoints import Checkpoints
from sd_core.engine.engine import Engine
from sd_core.formats.detect import NATIVE_SIZE_KEY
from sd_core.formats.keys import UNET_PREFIX, VAE_PREFIX
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.volume import Library
from tests.support.engine import SMALL_REQUEST
from tests.support.random_weights import SMALLEST, write_checkpoint

SECONDS = 60
NAMES = ("tiny", "second", "third")
REQUEST = replace(SMALL_REQUEST, steps=2)

Start = Callable[..., Engine]
Alone = Callable[[Request], np.ndarray]


def of(name: str, seed: int = 0) -> Request:
    return replace(REQUEST, model=name, seed=seed)


def write_volume(folder: Path, first: Path) -> Path:
    """Three checkpoints: the third has the first one's text encoder and VAE, and only the first has a tokenizer.

    `vae/` has the second one's VAE.
    """
    shutil.copytree(first.parent, folder)
    write_checkpoint(folder / "second.safetensors", SMALLEST, torch.float32, seed=1)
    tensors = load_file(folder / "tiny.safetensors")
    other = {name: -tensor if name.startswith(UNET_PREFIX) else tensor for name, tensor in tensors.items()}
    save_file(other, folder / "third.safetensors", {NATIVE_SIZE_KEY: "128"})
    (folder / "vae").mkdir()
    save_part(folder / "second.safetensors", folder / "vae" / "sharp.safetensors", is_of_vae)
    return folder


def is_of_vae(name: str) -> bool:
    return name.startswith(VAE_PREFIX)


def save_part(source: Path, target: Path, keep: Callable[[str], bool]) -> None:
    """The tensors of a checkpoint whose names are to be kept."""
    tensors = {name: tensor for name, tensor in load_file(source).items() if keep(name)}
    save_file(tensors, target, {NATIVE_SIZE_KEY: str(SMALLEST.native_size)})


def engine_of(folder: Path, budget: float | None = None) -> Engine:
    """It has loaded the first checkpoint; `budget` is how many models stay loaded."""
    model = StableDiffusion.load(folder / "tiny.safetensors", folder, "cpu", "fp32")
    checkpoints = Checkpoints([model], Catalogue({Kind.CHECKPOINT: (folder,)}, max_depth=1))
    size = None if budget is None else int(budget * checkpoints["tiny"].nbytes)
    return Engine(
        [model], 4, library=Library(Catalogue(folders_in(folder))), checkpoints=checkpoints, models_bytes=size
    )
