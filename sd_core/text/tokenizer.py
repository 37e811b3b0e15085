"""CLIP's byte-pair tokenizer, read from `vocab.json` and `merges.txt`."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sd_core.errors import ModelError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"

# CLIP's own split: English contractions, runs of letters, single digits, runs of anything else that is not a space.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokens:
    """Token ids of one prompt, begun, ended and padded to the encoder's length."""

    ids: tuple[int, ...]


class CLIPTokenizer:
    """Equal, id for id, to transformers' `CLIPTokenizer` on the same two files.

    Source: Radford et al. 2021 and OpenAI's `simple_tokenizer`; padding is the end token, as in v1.5's pipeline.
    """

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
        self.bos, self.eos = vocabulary[BOS], vocabulary[EOS]
        tokenizer = Tokenizer(
            BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=EOS, continuing_subword_prefix="")
        )
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (BOS, EOS)])
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, directory: Path) -> "CLIPTokenizer":
        """Reads both files from `directory`; raises `ModelError` that names the file which is missing or broken."""
        vocabulary = _parse_vocabulary(directory / VOCAB_FILE)
        merges = _parse_merges(directory / MERGES_FILE)
        try:
            return cls(vocabulary, merges)
        except Exception as error:  # the library raises a bare Exception for a merge that is not in the vocabulary
            raise ModelError(f"{directory / MERGES_FILE} does not fit {VOCAB_FILE} beside it: {error}") from error

    def split(self, text: str) -> list[tuple[int, int]]:
        """The text's ids, none added, each with the index of the character that it begins at."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [(token, start) for token, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)]

    def encode(self, text: str, length: int) -> Tokens:
        """The prompt's `length` ids: start, at most `length - 2` tokens, end, and end again as padding."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        kept = encoding.ids[: length - 2]
        ids = [self.bos, *kept, self.eos]
        return Tokens(tuple(ids + [self.eos] * (length - len(ids))))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing: the tokenizer needs {VOCAB_FILE} and {MERGES_FILE} of openai/clip-vit-large-patch14 "
            f"(also in the `tokenizer` folder of every v1.5 repository) beside the checkpoint."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _parse_vocabulary(path: Path) -> dict[str, int]:
    try:
        vocabulary = json.loads(_read(path))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(vocabulary, dict) or not all(isinstance(value, int) for value in vocabulary.values()):
        raise ModelError(f"{path} is not CLIP's vocabulary: it must map every token to its id.")
    for token in (BOS, EOS):
        if token not in vocabulary:
            raise ModelError(f"{path} is not CLIP's vocabulary: it has no entry {token!r}.")
    return vocabulary


def _parse_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for line in _read(path).splitlines():
        if line.startswith("#version") or not line.strip():
            continue
        left, separator, right = line.partition(" ")
        if not separator or " " in right:
            raise ModelError(f"{path} cannot be read: a merge is two tokens, not {line!r}")
        merges.append((left, right))
    return merges
