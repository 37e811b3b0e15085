"""Folders of files, and what a catalogue answers about them."""

from pathlib import Path

import pytest

from sd_core.catalogue import Catalogue, Kind, UnknownFile


def fill(directory: Path, *names: str) -> Path:
    """The directory with files of these names, which may lie in subdirectories."""
    for name in names:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return directory


def names(catalogue: Catalogue, kind: Kind = Kind.LORA) -> list[str]:
    return [entry.name for entry in catalogue.entries(kind)]


def refusal(catalogue: Catalogue, name: str, kind: Kind = Kind.LORA) -> str:
    """The error's text. Fails if the catalogue finds the file."""
    with pytest.raises(UnknownFile) as caught:
        catalogue.find(kind, name)
    return str(caught.value)
