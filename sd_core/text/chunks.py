"""Weighted pieces of a prompt -> chunks, each as long as the text encoder reads at once."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sd_core.text.vocabulary import Vocabulary
from sd_core.text.weights import BREAK, Piece
from sd_core.work import Token

BACKTRACK = 20
"""At the end of a full chunk, what follows a comma that is at most this many tokens back moves to the next chunk."""

WHOLE = 8
"""ComfyUI divides a segment of at least this many tokens between two chunks; a shorter one moves as a whole."""

_NAMED = re.compile(r"(?:^|(?<=[ \n]))embedding:")


@dataclass(frozen=True)
class Chunk:
    """Tokens, begun, ended and padded to the encoder's length, with the weight of each."""

    tokens: tuple[Token, ...]
    weights: tuple[float, ...]

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1 for weight in self.weights)


@dataclass
class _Writer:
    """Fills chunks with tokens, `length` of the prompt's own in each."""

    vocabulary: Vocabulary
    length: int
    chunks: list[Chunk] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def room(self) -> int:
        return self.length - len(self.tokens)

    def add(self, tokens: Sequence[Token], weight: float) -> None:
        self.tokens += tokens
        self.weights += [weight] * len(tokens)

    def end_chunk(self, moved: int | None = None) -> None:
        """End the chunk; the tokens from index `moved` on begin the next one."""
        kept, weights = self.tokens[:moved], self.weights[:moved]
        tokenizer = self.vocabulary.tokenizer
        padding = self.length + 1 - len(kept)
        self.chunks.append(
            Chunk(
                (tokenizer.bos, *kept, *(tokenizer.eos,) * padding),
                (1.0, *weights, *(1.0,) * padding),
            )
        )
        self.tokens, self.weights = ([], []) if moved is None else (self.tokens[moved:], self.weights[moved:])

    def finished(self) -> tuple[Chunk, ...]:
        if self.tokens or not self.chunks:
            self.end_chunk()
        return tuple(self.chunks)


def a1111_chunks(pieces: Sequence[Piece], vocabulary: Vocabulary, length: int) -> tuple[Chunk, ...]:
    """Chunks as AUTOMATIC1111's web UI makes them, of `length` tokens with start and end.

    Where a chunk is full, what follows its last comma moves to the next if it is short; BREAK ends a chunk; an
    embedding is never divided.
    """
    writer = _Writer(vocabulary, length - 2)
    (comma, *_) = vocabulary.ids(",")
    after_comma: int | None = None
    for piece in pieces:
        if piece == BREAK:
            writer.end_chunk()
            after_comma = None
            continue
        for tokens, _ in vocabulary.split(piece.text):
            if tokens == (comma,) and writer.room:
                after_comma = len(writer.tokens) + 1
            elif tokens != (comma,) and _moves(writer, after_comma):
                writer.end_chunk(after_comma)
                after_comma = None
            if len(tokens) > writer.room:
                writer.end_chunk()
                after_comma = None
            writer.add(tokens, piece.weight)
    return writer.finished()


def _moves(writer: _Writer, after_comma: int | None) -> bool:
    """Whether a full chunk ends at its last comma."""
    return not writer.room and after_comma is not None and len(writer.tokens) - after_comma < BACKTRACK


def comfy_chunks(pieces: Sequence[Piece], vocabulary: Vocabulary, length: int) -> tuple[tuple[Chunk, ...], list[str]]:
    """Chunks as ComfyUI makes them, of `length` tokens with start and end, and the embeddings that are not known."""
    writer = _Writer(vocabulary, length - 2)
    unknown: list[str] = []
    for piece in pieces:
        for segment in _segments(piece.text, vocabulary, unknown):
            divided = len(segment) >= WHOLE
            while len(segment) > writer.room:
                fitting = writer.room if divided else 0
                writer.add(segment[:fitting], piece.weight)
                segment = segment[fitting:]
                writer.end_chunk()
            writer.add(segment, piece.weight)
    return writer.finished(), unknown


def plain_chunks(text: str, vocabulary: Vocabulary, length: int) -> tuple[tuple[Chunk, ...], str]:
    """The one chunk that a text begins with, of `length` tokens with start and end, and the text beyond it."""
    writer = _Writer(vocabulary, length - 2)
    dropped = ""
    for tokens, start in vocabulary.split(text):
        if len(tokens) > writer.room:
            dropped = text[start:].strip()
            break
        writer.add(tokens, 1.0)
    return writer.finished(), dropped


def _segments(text: str, vocabulary: Vocabulary, unknown: list[str]) -> Iterator[Sequence[Token]]:
    """The tokens of a text and of the embeddings that it names, each apart; appends to `unknown`."""
    first, *named = _NAMED.split(text)
    yield vocabulary.ids(first)
    for part in filter(str.strip, named):
        name, _, rest = part.strip().replace("\n", " ").partition(" ")
        vectors = vocabulary.find(name)
        if vectors is None and (bare := name.strip(",")) != name:
            vectors = vocabulary.find(bare)
            name, rest = bare, f"{name[len(bare) :]} {rest}"
        if vectors is None:
            unknown.append(name)
        else:
            yield vectors
        yield vocabulary.ids(rest)
