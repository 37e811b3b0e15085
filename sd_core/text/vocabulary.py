"""A prompt's text -> tokens: the tokenizer's ids, and the vectors of embeddings that are named in it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sd_core.checks import shorten
from sd_core.text.tokenizer import CLIPTokenizer
from sd_core.work import Embedding, Token

Placed = tuple[tuple[Token, ...], int]
"""Tokens that belong together, and the index of the character that they begin at."""


class UnfitEmbedding(ValueError):
    """A prompt names an embedding that the model's text encoder cannot use; the text says why."""


@dataclass(frozen=True)
class Unusable:
    """An embedding file that cannot be used: an error, with this reason, of the prompt that names it."""

    names: tuple[str, ...]
    reason: str
    nbytes: int = 0


Named = Embedding | Unusable
"""What a word of a prompt may mean beside its text."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and the embeddings that prompts may name.

    An embedding is found by the ids of its name, the longest name first, so letters match in either case. The text
    encoder takes vectors of `width` numbers, if that is known, and at most `most` at once.
    """

    tokenizer: CLIPTokenizer
    width: int | None = None
    most: int | None = None
    embeddings: Mapping[str, Named] = field(default_factory=dict)  # by each of their names, in lower case
    _by_first_id: Mapping[int, list[tuple[tuple[int, ...], Named]]] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """0, because the embeddings belong to whoever read them."""
        return 0

    @classmethod
    def of(
        cls,
        tokenizer: CLIPTokenizer,
        embeddings: Iterable[Named] = (),
        width: int | None = None,
        most: int | None = None,
    ) -> "Vocabulary":
        """The first of several embeddings keeps a name that they share."""
        named: dict[str, Named] = {}
        for embedding in embeddings:
            for name in embedding.names:
                named.setdefault(name.casefold(), embedding)
        by_first_id: dict[int, list[tuple[tuple[int, ...], Named]]] = {}
        for name, embedding in named.items():
            if ids := tuple(token for token, _ in tokenizer.split(name)):
                by_first_id.setdefault(ids[0], []).append((ids, embedding))
        for candidates in by_first_id.values():
            candidates.sort(key=lambda candidate: -len(candidate[0]))
        return cls(tokenizer, width, most, named, by_first_id)

    def extended(self, embeddings: Iterable[Named]) -> "Vocabulary":
        """The same with further embeddings; those that it has keep their names."""
        added = list(embeddings)
        if not added:
            return self
        own = dict.fromkeys(self.embeddings.values())
        return Vocabulary.of(self.tokenizer, [*own, *added], self.width, self.most)

    def split(self, text: str) -> list[Placed]:
        """The text's tokens, an embedding's vectors together. Raises `UnfitEmbedding`."""
        if not self._by_first_id:
            return [((token,), start) for token, start in self.tokenizer.split(text)]
        split = self.tokenizer.split(text)
        ids = tuple(token for token, _ in split)
        placed: list[Placed] = []
        position = 0
        while position < len(ids):
            length, tokens = self._at(ids, position)
            placed.append((tokens, split[position][1]))
            position += length
        return placed

    def ids(self, text: str) -> list[int]:
        """The text's ids, without looking for embeddings."""
        return [token for token, _ in self.tokenizer.split(text)]

    def find(self, name: str) -> tuple[Token, ...] | None:
        """The vectors of the embedding of this name, if there is one. Raises `UnfitEmbedding`."""
        embedding = self.embeddings.get(name.casefold())
        return None if embedding is None else self._tokens(embedding)

    def _at(self, ids: tuple[int, ...], position: int) -> tuple[int, tuple[Token, ...]]:
        """How many ids an embedding's name has here, and its vectors; without an embedding, the one id."""
        for name, embedding in self._by_first_id.get(ids[position], ()):
            if ids[position : position + len(name)] == name:
                return len(name), self._tokens(embedding)
        return 1, (ids[position],)

    def _tokens(self, embedding: Named) -> tuple[Token, ...]:
        if isinstance(embedding, Unusable):
            raise UnfitEmbedding(f"the embedding {shorten(embedding.names[0])} cannot be used: {embedding.reason}")
        count, width = embedding.vectors.shape
        name = shorten(embedding.names[0])
        if self.width is not None and width != self.width:
            raise UnfitEmbedding(
                f"the embedding {name} was made for another family of models: its vectors are of width {width}, "
                f"this model's text encoder takes {self.width}"
            )
        if self.most is not None and count > self.most:
            raise UnfitEmbedding(f"the embedding {name} has {count} vectors, more than the {self.most} of a chunk")
        return embedding.tokens
