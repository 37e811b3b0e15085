import pytest
import torch

from sd_core.text.tokenizer import CLIPTokenizer
from sd_core.text.vocabulary import Vocabulary
from sd_core.work import Embedding, Token


def embedding(*names: str, count: int = 1) -> Embedding:
    return Embedding(names, f"sha of {names[0]}", torch.zeros(count, 4))


def tokens(vocabulary: Vocabulary, text: str) -> list[Token]:
    return [token for group, _ in vocabulary.split(text) for token in group]


def test_without_embeddings_a_text_is_its_ids(tokenizer: CLIPTokenizer) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.split("a photo, 8k") == [((token,), start) for token, start in tokenizer.split("a photo, 8k")]


def test_an_embedding_is_named_in_the_text(tokenizer: CLIPTokenizer) -> None:
    style = embedding("my-style", count=3)
    vocabulary = Vocabulary.of(tokenizer, [style])
    (a, by, comma) = vocabulary.ids("a by ,")
    assert tokens(vocabulary, "a by My-Style,") == [a, by, *style.tokens, comma]
    assert vocabulary.split("a by my-style,")[2] == (style.tokens, 5)
    assert tokens(vocabulary, "my style") == vocabulary.ids("my style")


def test_the_longest_name_wins_and_of_equal_ones_the_first(tokenizer: CLIPTokenizer) -> None:
    cat, cat_toy, other = embedding("zcat"), embedding("zcat-toy"), embedding("ZCAT")
    vocabulary = Vocabulary.of(tokenizer, [cat, cat_toy, other])
    assert tokens(vocabulary, "zcat zcat-toy zcat-") == [
        *cat.tokens,
        *cat_toy.tokens,
        *cat.tokens,
        *vocabulary.ids("-"),
    ]


def test_every_name_of_an_embedding_is_known(tokenizer: CLIPTokenizer) -> None:
    toy = embedding("learned_embeds", "<cat-toy>")
    vocabulary = Vocabulary.of(tokenizer, [toy])
    assert tokens(vocabulary, "<cat-toy> learned_embeds") == [*toy.tokens] * 2
    assert vocabulary.find("LEARNED_embeds") == toy.tokens
    assert vocabulary.find("<cat-toy>") == toy.tokens
    assert vocabulary.find("cat-toy") is None


@pytest.mark.parametrize("name", ["", " ", "\n"])
def test_a_name_without_tokens_is_found_nowhere_in_a_text(tokenizer: CLIPTokenizer, name: str) -> None:
    vocabulary = Vocabulary.of(tokenizer, [embedding(name)])
    assert tokens(vocabulary, "a b") == vocabulary.ids("a b")
