"""A prompt in one of the three syntaxes -> what the text encoder is to encode, at each step."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sd_core.checks import shorten
from sd_core.errors import InvalidRequest
from sd_core.text.chunks import Chunk, a1111_chunks, comfy_chunks, plain_chunks
from sd_core.text.comfy import parse_comfy
from sd_core.text.composition import split_prompt
from sd_core.text.editing import Steps, versions
from sd_core.text.tags import has_tags, read_tags
from sd_core.text.vocabulary import UnfitEmbedding, Vocabulary
from sd_core.text.weights import Piece, parse_weights

A1111, COMFY, PLAIN = "a1111", "comfy", "plain"

MAX_WEIGHT = 1_000.0
"""A larger weight ruins an image; unbounded ones overflow."""

MAX_PARTS = 16
"""Prompts that AND joins: each is a row of every forward."""

MAX_CHUNKS = 512
"""Chunks of all versions of a job's prompts: as much arithmetic as about four steps of v1.5 at 512x512."""

MAX_CHARACTERS = 262_144
"""Of all versions of a job's prompts."""


@dataclass(frozen=True)
class Prompt:
    """One text, ready to be encoded: at least one chunk. `syntax` says how the weights act."""

    syntax: str
    chunks: tuple[Chunk, ...]

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal prompts."""
        syntax = self.syntax if self.is_weighted else ""  # else they all mean the same
        return hashlib.blake2b(repr((syntax, self.chunks)).encode(), digest_size=16).digest()

    @cached_property
    def is_weighted(self) -> bool:
        return any(chunk.is_weighted for chunk in self.chunks)

    @property
    def needs_empty(self) -> bool:
        """Whether its weights act relative to the empty prompt."""
        return self.is_weighted and self.syntax == COMFY


@dataclass(frozen=True)
class Timeline:
    """A prompt that changes in the course of a run: each version with the last call, from 0, that it is used for."""

    versions: tuple[tuple[int, Prompt], ...]
    weight: float = 1.0

    def at(self, call: int) -> Prompt:
        """The prompt of a call; beyond the last version, that one stays."""
        for end, prompt in self.versions:
            if call <= end:
                return prompt
        return self.versions[-1][1]


@dataclass
class Reader:
    """Reads the prompts of one job, counting what they ask of the text encoder; warnings are collected.

    `length` is the number of tokens that the encoder reads at once, start and end included.
    """

    syntax: str
    vocabulary: Vocabulary
    length: int
    warnings: list[str] = field(default_factory=list)
    _known: dict[str, Prompt] = field(default_factory=dict)
    _characters: int = 0
    _chunks: int = 0

    def parts(self, text: str, steps: Steps, name: str) -> tuple[Timeline, ...]:
        """A prompt, which may be several joined by AND, without its tags; `name` is its field's.

        Raises `InvalidRequest` for a weight beyond the limit, for an embedding that does not fit the text encoder, and
        for prompts that take too much encoding.
        """
        if self.syntax != A1111:
            return (self.whole(text, steps, name),)
        tagged = read_tags(text, name)
        for warning in tagged.warnings:
            self._warn(warning)
        parts = split_prompt(tagged.text)
        if len(parts) > MAX_PARTS:
            raise InvalidRequest(f"{name}: {len(parts):,} prompts are joined by AND, at most {MAX_PARTS} are allowed")
        _check_weights(parts, name)
        return tuple(self._timeline(part.text, steps, name, part.weight) for part in parts)

    def whole(self, text: str, steps: Steps, name: str) -> Timeline:
        """A prompt that cannot be divided and has no tags, as a negative prompt; otherwise as `parts`."""
        if self.syntax == A1111 and has_tags(text):
            self._warn(f"{name}: its tags of adapters are text here; they act in a prompt")
        return self._timeline(text, steps, name, 1.0)

    def _timeline(self, text: str, steps: Steps, name: str, weight: float) -> Timeline:
        texts = versions(text, steps) if self.syntax == A1111 else [(steps.calls, text)]
        return Timeline(tuple((end, self._read(version, name)) for end, version in texts), weight)

    def _read(self, text: str, name: str) -> Prompt:
        known = self._known.get(text)
        if known is not None:
            return known
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            raise InvalidRequest(
                f"{name}: the versions that editing makes of the prompts have more than {MAX_CHARACTERS:,} characters"
            )
        try:
            prompt = Prompt(self.syntax, self._divide(text, name))
        except UnfitEmbedding as reason:
            raise InvalidRequest(f"{name}: {reason}") from None
        self._chunks += len(prompt.chunks)
        if self._chunks > MAX_CHUNKS:
            raise InvalidRequest(
                f"{name}: the prompts, with all versions that editing makes of them, take more than {MAX_CHUNKS} "
                f"chunks of {self.length - 2} tokens"
            )
        self._known[text] = prompt
        return prompt

    def _divide(self, text: str, name: str) -> tuple[Chunk, ...]:
        if self.syntax == PLAIN:
            chunks, dropped = plain_chunks(text, self.vocabulary, self.length)
            if dropped:
                self._warn(f"{name} is longer than {self.length - 2} tokens; this part was cut off: {dropped!r}")
            return chunks
        pieces = parse_comfy(text) if self.syntax == COMFY else parse_weights(text)
        _check_weights(pieces, name)
        if self.syntax == A1111:
            return a1111_chunks(pieces, self.vocabulary, self.length)
        chunks, unknown = comfy_chunks(pieces, self.vocabulary, self.length)
        for missing in dict.fromkeys(unknown):
            self._warn(f"{name}: the embedding {shorten(missing)} does not exist here; it was left out")
        return chunks

    def _warn(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)


def _check_weights(pieces: Sequence[Piece], name: str) -> None:
    for piece in pieces:
        if not abs(piece.weight) <= MAX_WEIGHT and piece.text.strip():
            raise InvalidRequest(
                f"{name}: a part of it has the weight {piece.weight:g}; "
                f"weights lie between -{MAX_WEIGHT:,.0f} and {MAX_WEIGHT:,.0f}"
            )
