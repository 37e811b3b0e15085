"""Chunks beside lists of tokens that are written out by hand; words are one token each."""

import pytest
import torch

from sd_core.text.chunks import Chunk, a1111_chunks, comfy_chunks, plain_chunks
from sd_core.text.tokenizer import CLIPTokenizer
from sd_core.text.vocabulary import Vocabulary
from sd_core.text.weights import BREAK, Piece
from sd_core.work import Embedding, Token

LENGTH = 77
STYLE = Embedding(("zstyle",), "sha", torch.zeros(4, 8))
LARGE = Embedding(("zlarge",), "sha of large", torch.zeros(10, 8))


@pytest.fixture(scope="module")
def vocabulary(tokenizer: CLIPTokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer, [STYLE, LARGE])


def contents(chunks: tuple[Chunk, ...], vocabulary: Vocabulary) -> list[list[tuple[Token, float]]]:
    """The tokens of each chunk with their weights, once start, end and padding are found to be as they must."""
    bos, eos = vocabulary.tokenizer.bos, vocabulary.tokenizer.eos
    found = []
    for chunk in chunks:
        assert len(chunk.tokens) == len(chunk.weights) == LENGTH
        assert chunk.tokens[0] == bos and chunk.tokens[-1] == eos
        own = [token for token in chunk.tokens[1:-1] if token != eos]
        assert chunk.tokens == (bos, *own, *[eos] * (LENGTH - 1 - len(own)))
        weights = chunk.weights[1 : 1 + len(own)]
        assert {chunk.weights[0], *chunk.weights[1 + len(own) :]} == {1.0}
        found.append(list(zip(own, weights, strict=True)))
    return found


def of(vocabulary: Vocabulary, text: str, weight: float = 1.0) -> list[tuple[Token, float]]:
    return [(token, weight) for token in vocabulary.ids(text)]


class TestA1111:
    def chunks(self, vocabulary: Vocabulary, *pieces: Piece | str) -> list[list[tuple[Token, float]]]:
        given = [Piece(piece, 1.0) if isinstance(piece, str) else piece for piece in pieces]
        return contents(a1111_chunks(given, vocabulary, LENGTH), vocabulary)

    def test_an_empty_prompt_is_one_chunk(self, vocabulary: Vocabulary) -> None:
        assert self.chunks(vocabulary, "") == [[]]

    def test_each_token_has_its_pieces_weight(self, vocabulary: Vocabulary) -> None:
        found = self.chunks(vocabulary, "a cat", Piece("red", 1.3), Piece("dog", 0.5))
        assert found == [of(vocabulary, "a cat") + of(vocabulary, "red", 1.3) + of(vocabulary, "dog", 0.5)]

    def test_what_does_not_fit_begins_the_next_chunk(self, vocabulary: Vocabulary) -> None:
        cats, dog = of(vocabulary, "cat " * 75), of(vocabulary, "dog")
        assert self.chunks(vocabulary, "cat " * 75) == [cats]
        assert self.chunks(vocabulary, "cat " * 75 + "dog") == [cats, dog]
        assert self.chunks(vocabulary, "cat " * 150 + "dog") == [cats, cats, dog]

    @pytest.mark.parametrize("after", [0, 1, 19])
    def test_what_follows_a_comma_close_to_the_end_moves_to_the_next_chunk(
        self, vocabulary: Vocabulary, after: int
    ) -> None:
        before, moved = "cat " * (74 - after) + ",", "dog " * after
        assert self.chunks(vocabulary, before + moved + "cow") == [
            of(vocabulary, before),
            of(vocabulary, moved + "cow"),
        ]

    def test_a_comma_further_back_than_twenty_tokens_changes_nothing(self, vocabulary: Vocabulary) -> None:
        full = "cat " * 54 + "," + "dog " * 20
        assert self.chunks(vocabulary, full + "cow") == [of(vocabulary, full), of(vocabulary, "cow")]

    def test_a_comma_that_would_begin_the_next_chunk_stays_there(self, vocabulary: Vocabulary) -> None:
        full = "cat " * 70 + "," + "dog " * 4
        assert self.chunks(vocabulary, full + ", cow") == [of(vocabulary, full), of(vocabulary, ", cow")]

    def test_a_comma_counts_in_its_own_chunk_only(self, vocabulary: Vocabulary) -> None:
        found = self.chunks(vocabulary, "cat " * 74 + "," + "dog " * 76)
        assert [len(chunk) for chunk in found] == [75, 75, 1]

    def test_weights_move_with_their_tokens(self, vocabulary: Vocabulary) -> None:
        found = self.chunks(vocabulary, "cat " * 70 + ",", Piece("dog " * 4, 1.5), "cow")
        assert found == [of(vocabulary, "cat " * 70 + ","), of(vocabulary, "dog " * 4, 1.5) + of(vocabulary, "cow")]

    def test_break_ends_a_chunk_even_an_empty_one(self, vocabulary: Vocabulary) -> None:
        cat, dog = of(vocabulary, "cat"), of(vocabulary, "dog")
        assert self.chunks(vocabulary, "cat", BREAK, "dog") == [cat, dog]
        assert self.chunks(vocabulary, "", BREAK, "", BREAK, "dog") == [[], [], dog]
        assert self.chunks(vocabulary, "cat", BREAK, "") == [cat]
        weighted = self.chunks(vocabulary, "cat", Piece("BREAK", -1.2))
        assert weighted == [cat + of(vocabulary, "break", -1.2)]

    def test_an_embedding_is_not_divided(self, vocabulary: Vocabulary) -> None:
        style = [(token, 1.2) for token in STYLE.tokens]
        assert self.chunks(vocabulary, "cat " * 71, Piece("zstyle", 1.2)) == [of(vocabulary, "cat " * 71) + style]
        assert self.chunks(vocabulary, "cat " * 72, Piece("zstyle", 1.2), "dog") == [
            of(vocabulary, "cat " * 72),
            style + of(vocabulary, "dog"),
        ]


class TestComfy:
    def chunks(self, vocabulary: Vocabulary, *pieces: Piece | str) -> list[list[tuple[Token, float]]]:
        given = [Piece(piece, 1.0) if isinstance(piece, str) else piece for piece in pieces]
        chunks, unknown = comfy_chunks(given, vocabulary, LENGTH)
        assert unknown == []
        return contents(chunks, vocabulary)

    def test_a_short_segment_moves_as_a_whole(self, vocabulary: Vocabulary) -> None:
        cats = "cat " * 72
        assert self.chunks(vocabulary, cats, Piece("dog " * 7, 2.0)) == [
            of(vocabulary, cats),
            of(vocabulary, "dog " * 7, 2.0),
        ]

    def test_a_long_segment_is_divided(self, vocabulary: Vocabulary) -> None:
        cats = of(vocabulary, "cat " * 72)
        assert self.chunks(vocabulary, "cat " * 72, Piece("dog " * 8, 2.0)) == [
            cats + of(vocabulary, "dog " * 3, 2.0),
            of(vocabulary, "dog " * 5, 2.0),
        ]
        assert [len(chunk) for chunk in self.chunks(vocabulary, "cat " * 160)] == [75, 75, 10]

    def test_commas_and_break_mean_nothing(self, vocabulary: Vocabulary) -> None:
        text = "cat " * 70 + ", dog dog dog BREAK cow cow"
        assert [len(chunk) for chunk in self.chunks(vocabulary, text)] == [75, 2]
        assert self.chunks(vocabulary, "") == [[]]

    def test_embeddings_are_named_by_a_prefix_alone(self, vocabulary: Vocabulary) -> None:
        style = [(token, 1.5) for token in STYLE.tokens]
        assert self.chunks(vocabulary, Piece("cat embedding:zstyle dog", 1.5)) == [
            of(vocabulary, "cat", 1.5) + style + of(vocabulary, "dog", 1.5)
        ]
        assert self.chunks(vocabulary, "cat zstyle") == [of(vocabulary, "cat zstyle")]
        assert self.chunks(vocabulary, "catembedding:zstyle") == [of(vocabulary, "catembedding:zstyle")]

    def test_a_comma_after_a_name_is_text(self, vocabulary: Vocabulary) -> None:
        style = [(token, 1.0) for token in STYLE.tokens]
        assert self.chunks(vocabulary, "embedding:zstyle, dog\nembedding:zstyle") == [
            style + of(vocabulary, ", dog") + style
        ]

    def test_a_long_embedding_is_divided(self, vocabulary: Vocabulary) -> None:
        large = [(token, 1.0) for token in LARGE.tokens]
        assert self.chunks(vocabulary, "cat " * 70 + "embedding:zlarge") == [
            of(vocabulary, "cat " * 70) + large[:5],
            large[5:],
        ]

    def test_an_embedding_that_does_not_exist_is_left_out_by_name(self, vocabulary: Vocabulary) -> None:
        chunks, unknown = comfy_chunks([Piece("embedding:nothing, dog embedding:", 1.0)], vocabulary, LENGTH)
        assert unknown == ["nothing"]
        assert contents(chunks, vocabulary) == [of(vocabulary, ", dog")]


class TestPlain:
    def test_brackets_are_text(self, vocabulary: Vocabulary) -> None:
        chunks, dropped = plain_chunks("(a:1.3) [b|c]", vocabulary, LENGTH)
        assert contents(chunks, vocabulary) == [of(vocabulary, "(a:1.3) [b|c]")]
        assert dropped == ""

    def test_what_does_not_fit_is_named(self, vocabulary: Vocabulary) -> None:
        text = "cat " * 74 + "Unquestionably-extraordinary MOUNTAIN lake"
        chunks, dropped = plain_chunks(text, vocabulary, LENGTH)
        assert len(chunks) == 1
        assert dropped.endswith("MOUNTAIN lake") and "cat" not in dropped
        assert plain_chunks("cat " * 75, vocabulary, LENGTH)[1] == ""

    def test_only_what_lies_beyond_the_last_token_is_named(self, vocabulary: Vocabulary) -> None:
        word = "antidisestablishmentarianism"
        _, dropped = plain_chunks("cat " * 74 + word, vocabulary, LENGTH)
        assert dropped and len(dropped) < len(word) and word.endswith(dropped)
        japanese = "夕暮れの灯台と荒れた海、油絵、" * 8
        _, dropped = plain_chunks(japanese, vocabulary, LENGTH)
        assert japanese.endswith(dropped)
        seen = japanese[: len(japanese) - len(dropped)]
        assert len(seen) > 15 and plain_chunks(seen, vocabulary, LENGTH)[1] == ""

    def test_it_is_what_the_tokenizer_encodes(self, vocabulary: Vocabulary) -> None:
        for text in ("", "a cat", "cat " * 100):
            (chunk,), _ = plain_chunks(text, vocabulary, LENGTH)
            assert chunk.tokens == vocabulary.tokenizer.encode(text, LENGTH).ids

    def test_an_embedding_stands_whole_or_not_at_all(self, vocabulary: Vocabulary) -> None:
        (chunk,), dropped = plain_chunks("cat zstyle", vocabulary, LENGTH)
        assert chunk.tokens[2:6] == STYLE.tokens and dropped == ""
        (chunk,), dropped = plain_chunks("cat " * 72 + "zstyle dog", vocabulary, LENGTH)
        assert dropped == "zstyle dog" and STYLE.tokens[0] not in chunk.tokens
