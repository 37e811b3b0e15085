"""An adapter's file -> an adapter that is ready on a model's device."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sd_core.adapters.apply import Adapter
from sd_core.adapters.scales import CONFIG
from sd_core.adapters.source import Source
from sd_core.adapters.understand import understand
from sd_core.errors import ModelError
from sd_core.formats.embedding import bundled_embeddings
from sd_core.formats.files import TensorFile, is_pickle
from sd_core.formats.load import Networks
from sd_core.formats.unpickle import open_checkpoint

MAX_CONFIG = 2**20
"""Bytes of an `adapter_config.json`, which has about one kilobyte."""

HASHED_AT_ONCE = 2**20


def read_adapter(path: Path, networks: Networks, device: torch.device, dtype: torch.dtype) -> Adapter:
    """The adapter of a `.safetensors`, or of a PyTorch file by the reader that runs nothing of it.

    It depends on the networks if it is a DoRA, OFT, IA3 or GLoRA, and on their sizes. All of it is read and checked
    before this returns: nothing of the file stays mapped or open. ModelError, which names the file, if it is missing,
    damaged, of another kind or for another family of models.
    """
    with open_checkpoint(path) as file, ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(_digest, file)
        try:
            source = Source(file.shapes, _metadata(file), _Reader(file).read, hashed.result)
            adapter = understand(source, networks.unet, networks.text_encoder, device, dtype)
            return replace(adapter, embeddings=tuple(bundled_embeddings(file)))
        except ModelError as error:
            raise error if str(path) in str(error) else ModelError(f"{path}: {error}") from None


class _Reader:
    """Reads one tensor at a time into the same memory."""

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        largest = max((stored.span_bytes for stored in file.tensors.values()), default=0)
        self._scratch = torch.empty(largest, dtype=torch.uint8)

    def read(self, name: str) -> Tensor:
        return self._file.read(name, self._scratch)


def _metadata(file: TensorFile) -> Mapping[str, str]:
    """The file's own, and the configuration that PEFT writes beside its files."""
    beside = file.path.with_name("adapter_config.json")
    if not file.path.stem.startswith("adapter_model") or not beside.is_file() or beside.stat().st_size > MAX_CONFIG:
        return file.metadata
    return {**file.metadata, CONFIG: beside.read_text("utf-8", "replace")}


def _digest(file: TensorFile) -> str:
    """The sha256 of what follows a safetensors file's header, of all of another file, as A1111 hashes them.

    It reads beside others, who move the file's position.
    """
    descriptor, start = file.file.fileno(), 0
    if not is_pickle(os.pread(descriptor, 8, 0)):
        start = 8 + int.from_bytes(os.pread(descriptor, 8, 0), "little")
    sha256 = hashlib.sha256()
    while block := os.pread(descriptor, HASHED_AT_ONCE, start):
        sha256.update(block)
        start += len(block)
    return sha256.hexdigest()
