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
from sd_core.adapters.describe import Description, describe
from sd_core.adapters.names import Names
from sd_core.adapters.scales import CONFIG
from sd_core.adapters.source import Source
from sd_core.adapters.understand import understand
from sd_core.errors import ModelError
from sd_core.formats.check import meta_network
from sd_core.formats.embedding import bundled_embeddings
from sd_core.formats.files import TensorFile, is_pickle
from sd_core.formats.foreign import LORA, recognize
from sd_core.formats.unpickle import open_checkpoint
from sd_core.models.clip import CLIPConfig, CLIPTextEncoder
from sd_core.models.unet import UNet, UNetConfig

MAX_CONFIG = 2**20
"""Bytes of an `adapter_config.json`, which has about one kilobyte."""

HASHED_AT_ONCE = 2**20


def read_adapter(
    path: Path, unet: UNet, text_encoder: CLIPTextEncoder, device: torch.device, dtype: torch.dtype
) -> Adapter:
    """The adapter of a `.safetensors`, or of a PyTorch file by the reader that runs nothing of it.

    It is for these networks: a DoRA, OFT, IA3 or GLoRA depends on their weights, and may hold on to them. All of the
    file is read and checked before this returns, and nothing of it stays mapped or open. ModelError, which names the
    file, if it is missing, damaged, of another kind or for another family of models.
    """
    with open_checkpoint(path) as file, ThreadPoolExecutor(1) as pool:
        header = _header(file)
        hashed = pool.submit(_digest, file, len(header))
        try:
            _refuse_others(file)
            source = Source(file.shapes, _metadata(file), _Reader(file).read, hashed.result, header)
            adapter = understand(source, unet, text_encoder, device, dtype)
            return replace(adapter, embeddings=tuple(bundled_embeddings(file)))
        except ModelError as error:
            raise error if str(path) in str(error) else ModelError(f"{path}: {error}") from None


def describe_adapter(file: TensorFile) -> Description:
    """What an adapter's file is, beside the networks of v1.5, without reading its tensors."""
    unet, text_encoder = meta_network(lambda: UNet(UNetConfig())), meta_network(lambda: CLIPTextEncoder(CLIPConfig()))
    return describe(file.shapes, file.metadata, Names.of(unet, text_encoder))


def _refuse_others(file: TensorFile) -> None:
    """ModelError if the file is a checkpoint, an embedding or anything else that is not an adapter."""
    kind = recognize(file.shapes)
    if kind is None:
        raise ModelError("not a LoRA: it is a checkpoint")
    if kind.folder not in (None, LORA.folder):
        raise ModelError(f"not a LoRA: it is {kind}")


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


def _header(file: TensorFile) -> bytes:
    """What comes before the tensors in a safetensors file; nothing in a PyTorch file, which has it everywhere."""
    descriptor = file.file.fileno()
    length = os.pread(descriptor, 8, 0)
    return b"" if is_pickle(length) else os.pread(descriptor, 8 + int.from_bytes(length, "little"), 0)


def _digest(file: TensorFile, start: int) -> str:
    """The sha256 of what follows a safetensors file's header, of all of another file, as A1111 hashes them.

    It reads beside others, who move the file's position.
    """
    sha256 = hashlib.sha256()
    while block := os.pread(file.file.fileno(), HASHED_AT_ONCE, start):
        sha256.update(block)
        start += len(block)
    return sha256.hexdigest()
