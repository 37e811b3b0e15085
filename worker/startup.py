"""Settings -> a worker that is ready, or one message: what is wrong and what to do about it."""

import atexit
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from sd_core.catalogue import Catalogue, Kind
from sd_core.engine.checkpoints import Checkpoints
from sd_core.engine.engine import Engine
from sd_core.engine.graphs import Bucket, Step
from sd_core.errors import InvalidRequest, SDError
from sd_core.pipeline.model import StableDiffusion
from sd_core.volume import Library
from worker import log
from worker.api.job import Limits
from worker.api.response import encode
from worker.checks import check_gpu, check_outputs
from worker.find import Found, find
from worker.folders import catalogue_of
from worker.identity import Identities, NativeSizes
from worker.phases import Phases, process_age
from worker.remedy import remedy
from worker.service import Service
from worker.settings import Settings, StartupError


def start(settings: Settings) -> Service:
    """Find, convert if necessary, load and warm up the models. Raises `StartupError`."""
    log.configure(settings.log_level)
    phases = Phases(process_age())
    check_outputs(settings.outputs)
    check_gpu(settings)
    found = find(settings)
    library = Library(catalogue_of(settings, list(dict.fromkeys(file.directory for file in found))))
    models: list[StableDiffusion] = []
    for file in found:
        with _explained(settings, found, file):
            checkpoint = _safetensors(file.checkpoint)
            if checkpoint != file.checkpoint:
                phases.end("convert")
            lender = (lambda: models[0]) if models else None
            models.append(StableDiffusion.load(checkpoint, file.tokenizer, settings.device, settings.dtype, lender))
            phases.end("load")
    checkpoints = Checkpoints(models, _catalogue(found), compiled_forwards)
    with _explained(settings, found, found[0]):
        engine = _warm_engine(settings, models, checkpoints, library)
        encode(np.zeros((8, 8, 3), np.uint8), "png", "")  # Pillow looks for its writers at the first image
        phases.end("warm_up")
    identities = Identities(checkpoints)
    about = {
        "model": str(found[0].checkpoint),
        "models": [identities[model.info.name].name for model in models],
        "device": models[0].info.device,
        "dtype": models[0].info.dtype,
        "start_ms": phases.milliseconds(),
    }
    log.log.info("ready", extra={"fields": about})
    limits = Limits(settings.max_pixels, NativeSizes(checkpoints), partial(_has_vae, library))
    return Service(settings, engine, identities, limits)


def _has_vae(library: Library, name: str) -> bool:
    try:
        library.find(Kind.VAE, name, "vae")
    except InvalidRequest:
        return False
    return True


def _catalogue(found: Sequence[Found]) -> Catalogue:
    """All checkpoints that lie beside those that are loaded at the start."""
    return Catalogue({Kind.CHECKPOINT: tuple(dict.fromkeys(file.directory for file in found))}, max_depth=1)


@contextmanager
def _explained(settings: Settings, found: Sequence[Found], file: Found) -> Iterator[None]:
    """Turn what goes wrong with `file` into a `StartupError` with the remedy."""
    try:
        yield
    except (SDError, OSError, RuntimeError) as error:  # torch raises the last of devices and drivers
        log.log.debug("the start failed", exc_info=error)
        advice = remedy(settings, found, file, error)
        raise StartupError(f"The model {file.checkpoint} could not be loaded: {error}\n{advice}") from error


def _safetensors(checkpoint: Path) -> Path:
    """The checkpoint as safetensors."""
    if checkpoint.suffix.lower() != ".ckpt":
        return checkpoint
    from builder.convert import ensure_converted  # most starts have nothing to convert

    log.log.info(f"converting {checkpoint}, once for all workers that share this directory")
    return ensure_converted(checkpoint, checkpoint.with_suffix(".safetensors"))


def _warm_engine(
    settings: Settings, models: Sequence[StableDiffusion], checkpoints: Checkpoints, library: Library
) -> Engine:
    compiled = {model.info.name: compiled_forwards(model) for model in models}
    engine = Engine(
        models,
        settings.max_batch,
        settings.max_jobs,
        compiled,
        _end_process,
        library=library,
        checkpoints=checkpoints,
        models_bytes=settings.models_bytes,
    )
    # The interpreter must not be torn down while the engine's thread runs.
    atexit.register(engine.close)
    engine.warm_up()
    return engine


def _end_process(error: Exception) -> None:
    """After a failure of the engine, end as at the platform's own signal: jobs in flight are still answered."""
    log.log.critical("the engine has failed, so this worker ends", exc_info=error)
    os.kill(os.getpid(), signal.SIGTERM)


def compiled_forwards(model: StableDiffusion) -> dict[Bucket, Step]:
    """The forwards that `python -m builder compile` made for this GPU and put beside the checkpoint, if any."""
    directory = model.file.path.parent
    if model.device.type != "cuda":
        return {}
    from sd_core.engine.aot import COMPILED, folder_of, load_packages  # other starts do not need them

    if not (directory / COMPILED).is_dir():
        return {}
    folder = folder_of(directory, model.networks.unet, model.device)
    packages = load_packages(folder, model.networks.unet)
    log.log.info(f"{len(packages)} compiled forwards of the UNet from {folder}")
    return packages
