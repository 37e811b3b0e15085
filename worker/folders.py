"""Where the files lie that jobs may name: the folders that the operator set, or the usual ones beside a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sd_core.catalogue import FOLDERS, Catalogue, Kind, folders_in
from worker.settings import FOLDER_VARIABLES, Settings, StartupError

# ComfyUI's names under `models` where they are not this project's own.
COMFYUI: Mapping[Kind, str] = {**FOLDERS, Kind.UPSCALER: "upscale_models", Kind.IP_ADAPTER: "ipadapter"}


def catalogue_of(settings: Settings, weights: Sequence[Path]) -> Catalogue:
    """The catalogue of all folders; `weights` are the directories of the checkpoints.

    Raises `StartupError` if a folder that is set does not exist. The usual ones need not exist yet.
    """
    missing = [
        f"  {FOLDER_VARIABLES[kind]}: {folder}"
        for kind, folders in settings.folders.items()
        for folder in folders
        if not folder.is_dir()
    ]
    if missing:
        raise StartupError("\n".join(["These directories are set and do not exist:", *missing]))
    usual = {kind: tuple(dict.fromkeys(_usual(kind, settings, weights))) for kind in FOLDERS}
    return Catalogue({**usual, **settings.folders})


def _usual(kind: Kind, settings: Settings, weights: Sequence[Path]) -> Iterator[Path]:
    """In the weights' directory, beside it, and where ComfyUI keeps them on a volume."""
    for directory in weights:
        yield from folders_in(directory)[kind]
        yield from folders_in(directory.absolute().parent)[kind]
        yield directory.absolute().parent / COMFYUI[kind]
    for volume in settings.volumes:
        yield volume / "models" / COMFYUI[kind]
