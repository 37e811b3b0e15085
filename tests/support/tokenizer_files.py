"""CLIP's tokenizer files, `vocab.json` and `merges.txt`: the real ones, or with bytes only for tiny models."""

import gzip
import importlib.util
import json
from pathlib import Path

from sd_core.text.tokenizer import BOS, EOS, MERGES_FILE, VOCAB_FILE

# CLIP uses this many lines of the published list: its 49,408 tokens less 2 x 256 bytes and two special tokens.
CLIP_MERGES = 48_894


def byte_alphabet() -> list[str]:
    """The 256 characters that represent bytes in GPT-2's and CLIP's vocabularies, in the order of these."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len([byte for byte in range(256) if byte not in printable])
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]


def clip_merges() -> list[str]:
    """CLIP's real merges, `"i n"` and so on, from the list in the open-clip-torch wheel."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("open_clip is not installed: pip install --no-deps -r requirements-nodeps.txt")
    with gzip.open(Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : CLIP_MERGES + 1]


def write_tokenizer(directory: Path, merges: list[str]) -> None:
    """`vocab.json` and `merges.txt` of these merges, numbered as CLIP numbers its tokens; 514 tokens without any."""
    alphabet = byte_alphabet()
    tokens = alphabet + [byte + "</w>" for byte in alphabet] + ["".join(merge.split()) for merge in merges]
    vocabulary = {token: index for index, token in enumerate([*tokens, BOS, EOS])}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / VOCAB_FILE).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *merges, ""]
    (directory / MERGES_FILE).write_text("\n".join(lines), encoding="utf-8")
