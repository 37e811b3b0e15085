"""Fixtures that several floors share."""

from pathlib import Path

import pytest
import torch

from bench.random_weights import TINY, write_checkpoint
from bench.tokenizer_files import clip_merges, write_tokenizer
from sd_core.pipeline.model import StableDiffusion


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CLIP's real `vocab.json` and `merges.txt`."""
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder, clip_merges())
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random v1 checkpoint that draws in a moment, with a tokenizer of bytes alone beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder, [])
    write_checkpoint(folder / "tiny.safetensors", TINY, torch.float32)
    return folder / "tiny.safetensors"


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> StableDiffusion:
    return StableDiffusion.load(tiny_checkpoint, tiny_checkpoint.parent, "cpu", "fp32")
