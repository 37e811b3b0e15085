"""Fixtures that several floors share."""

import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from sd_core.text.tokenizer import BOS, EOS


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CLIP's real `vocab.json` and `merges.txt`, made from the byte-pair list in open-clip's wheel."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None, "open-clip-torch is missing: make test installs it"
    lines = gzip.decompress((Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = lines[1 : 49_152 - 256 - 2 + 1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len([byte for byte in range(256) if byte not in printable])
    letters = [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(m.split()) for m in merges), BOS, EOS]
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == 49_408
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    return folder
