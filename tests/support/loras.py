"""A folder of adapters beside a model, and an engine that uses them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file

from sd_core.adapters.names import Names
from sd_core.catalogue import Catalogue, folders_in
from sd_core.engine.engine import Engine
from sd_core.pipeline.model import StableDiffusion
from sd_core.volume import Library
from tests.support.adapter_files import random_lora


def write_lora(path: Path, model: StableDiffusion, seed: int, rank: int = 4, size: float = 1.0) -> None:
    """A random LoRA in kohya's spelling, of layers of both networks."""
    networks = model.networks
    names = Names.of(networks.unet, networks.text_encoder)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"sshs_model_hash": f"{seed:064x}"}
    save_file(random_lora(names, networks.unet.config, rank, float(rank), size=size, seed=seed), path, metadata)


def library_in(folder: Path) -> Library:
    """The files in the folders beside a checkpoint."""
    return Library(Catalogue(folders_in(folder)))


@contextmanager
def engine_in(folder: Path, model: StableDiffusion, max_batch: int = 4) -> Iterator[Engine]:
    engine = Engine([model], max_batch, library=library_in(folder))
    try:
        yield engine
    finally:
        engine.close()
