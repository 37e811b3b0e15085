from pathlib import Path

import pytest

from sd_core.text.tokenizer import CLIPTokenizer


@pytest.fixture(scope="session")
def tokenizer(clip_vocabulary: Path) -> CLIPTokenizer:
    """CLIP's own."""
    return CLIPTokenizer.load(clip_vocabulary)
