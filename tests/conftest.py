"""Fixtures that several floors share."""

from pathlib import Path

import pytest

from bench.tokenizer_files import clip_merges, write_tokenizer


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CLIP's real `vocab.json` and `merges.txt`."""
    folder = tmp_path_factory.mktemp("clip")
    write_tokenizer(folder, clip_merges())
    return folder
