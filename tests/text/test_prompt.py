"""Prompts in each syntax, over a run's calls, and the bounds of what they may ask for."""

import pytest
import torch

from sd_core.errors import InvalidRequest
from sd_core.text.editing import Steps
from sd_core.text.prompt import MAX_CHUNKS, MAX_PARTS, Reader, Timeline
from sd_core.text.tokenizer import CLIPTokenizer
from sd_core.text.vocabulary import Vocabulary
from sd_core.work import Embedding

TEN = Steps(10)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: CLIPTokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer, [Embedding(("zstyle",), "sha", torch.zeros(2, 8))])


def reader(vocabulary: Vocabulary, syntax: str = "a1111") -> Reader:
    return Reader(syntax, vocabulary, 77)


def same(vocabulary: Vocabulary, timeline: Timeline, *texts: str) -> bool:
    """Whether a run's calls 0, 1, ... have the prompts that these texts are alone."""
    alone = [reader(vocabulary).whole(text, Steps(1), "prompt").at(0) for text in texts]
    return [timeline.at(call).digest for call in range(len(texts))] == [each.digest for each in alone]


def test_an_edit_is_used_from_the_call_after_its_step(vocabulary: Vocabulary) -> None:
    """AUTOMATIC1111 compares the step at which a version ends with calls that it counts from 0."""
    (timeline,) = reader(vocabulary).parts("[cat:dog:3]", TEN, "prompt")
    assert same(vocabulary, timeline, *["cat"] * 4, *["dog"] * 6)
    assert timeline.at(1_000).digest == timeline.at(9).digest


def test_alternatives_change_at_every_call(vocabulary: Vocabulary) -> None:
    (timeline,) = reader(vocabulary).parts("[cat|dog|cow]", TEN, "prompt")
    assert same(vocabulary, timeline, "cat", "cat", "dog", "cow", "cat", "dog", "cow", "cat", "dog", "cow")


def test_each_distinct_version_is_read_once(vocabulary: Vocabulary) -> None:
    (timeline,) = reader(vocabulary).parts("a [cat|dog]", TEN, "prompt")
    assert len({id(prompt) for _, prompt in timeline.versions}) == 2


def test_and_divides_a_prompt_and_no_negative_prompt(vocabulary: Vocabulary) -> None:
    reads = reader(vocabulary)
    cat, dog = reads.parts("[red:blue:3] cat AND a dog :-0.5", TEN, "prompt")
    assert (cat.weight, dog.weight) == (1.0, -0.5)
    assert same(vocabulary, cat, "red cat") and same(vocabulary, dog, " a dog")
    whole = reads.whole("a cat AND a dog :2", TEN, "negative_prompt")
    ids = vocabulary.ids("a cat and a dog :2")
    assert whole.weight == 1.0
    assert whole.at(0).chunks[0].tokens[1 : len(ids) + 1] == tuple(ids)


@pytest.mark.parametrize("syntax", ["comfy", "plain"])
def test_other_syntaxes_know_no_edits_and_no_and(vocabulary: Vocabulary, syntax: str) -> None:
    (timeline,) = reader(vocabulary, syntax).parts("[cat:dog:3] AND [a|b]", TEN, "prompt")
    ids = vocabulary.ids("[cat:dog:3] AND [a|b]")
    assert len(timeline.versions) == 1
    assert timeline.at(9).chunks[0].tokens[1 : len(ids) + 1] == tuple(ids)


def test_equal_prompts_have_equal_digests_and_weights_make_them_different(vocabulary: Vocabulary) -> None:
    def digest(text: str, syntax: str = "a1111") -> bytes:
        return reader(vocabulary, syntax).whole(text, TEN, "prompt").at(0).digest

    assert digest("a cat") == digest("A  cat") == digest("a cat", "comfy") == digest("a cat", "plain")
    weighted = {digest("a (cat:1.2)"), digest("a (cat:1.3)"), digest("a (cat:1.2)", "comfy"), digest("a cat")}
    assert len(weighted) == 4
    assert digest("zstyle") != digest("cat")


def test_an_embeddings_content_is_part_of_the_digest(tokenizer: CLIPTokenizer) -> None:
    one, same_again, other = (
        reader(Vocabulary.of(tokenizer, [Embedding(("zstyle",), sha256, torch.zeros(2, 8))]))
        .whole("a zstyle", TEN, "prompt")
        .at(0)
        .digest
        for sha256 in ("a", "a", "b")
    )
    assert one == same_again != other


def test_only_comfys_weights_need_the_empty_prompt(vocabulary: Vocabulary) -> None:
    def needs(text: str, syntax: str) -> bool:
        return reader(vocabulary, syntax).whole(text, TEN, "prompt").at(0).needs_empty

    assert needs("a (cat:1.2)", "comfy")
    assert not needs("a cat", "comfy")
    assert not needs("a (cat:1.2)", "a1111")


def test_a_plain_prompt_that_is_cut_off_is_warned_of_by_its_field(vocabulary: Vocabulary) -> None:
    reads = reader(vocabulary, "plain")
    reads.whole("word " * 75, TEN, "prompt")
    assert reads.warnings == []
    reads.whole("word " * 80, TEN, "negative_prompt")
    assert reads.warnings == [
        "negative_prompt is longer than 75 tokens; this part was cut off: 'word word word word word'"
    ]


def test_a_long_prompt_is_cut_nowhere_else(vocabulary: Vocabulary) -> None:
    for syntax in ("a1111", "comfy"):
        reads = reader(vocabulary, syntax)
        assert len(reads.whole("word " * 500, TEN, "prompt").at(0).chunks) == 7
        assert reads.warnings == []


def test_an_unknown_embedding_is_warned_of_once(vocabulary: Vocabulary) -> None:
    reads = reader(vocabulary, "comfy")
    reads.whole("embedding:nothing a embedding:nothing", TEN, "prompt")
    assert reads.warnings == ["prompt: the embedding 'nothing' does not exist here; it was left out"]


@pytest.mark.parametrize(
    ("text", "syntax"),
    [
        ("(a:1001)", "a1111"),
        ("(a:-1001)", "a1111"),
        ("(a:" + "9" * 400 + ")", "a1111"),
        ("(" * 8_000 + "a", "a1111"),
        ("(" * 10_000 + "a" + ")" * 10_000, "a1111"),
        ("(" * 8_000 + "(a:0)", "a1111"),
        ("a :9999 AND b", "a1111"),
        ("(a:1e9)", "comfy"),
        ("(a:nan)", "comfy"),
        ("(a:inf)", "comfy"),
        ("(" * 4_000 + "a" + ")" * 4_000, "comfy"),
    ],
    ids=lambda value: value[:8],
)
def test_a_weight_beyond_the_limit_is_refused_by_field(vocabulary: Vocabulary, text: str, syntax: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt: .*has the weight .*between -1,000 and 1,000$"):
        reader(vocabulary, syntax).parts(text, TEN, "prompt")


@pytest.mark.parametrize("syntax", ["a1111", "comfy", "plain"])
def test_an_embedding_that_does_not_fit_is_refused_by_name(tokenizer: CLIPTokenizer, syntax: str) -> None:
    wide = Embedding(("zwide",), "sha of wide", torch.zeros(1, 1024))
    many = Embedding(("zmany",), "sha of many", torch.zeros(76, 768))
    reads = reader(Vocabulary.of(tokenizer, [wide, many], width=768, most=75), syntax)
    reads.parts("a cat", TEN, "prompt")
    with pytest.raises(InvalidRequest, match=r"^prompt: the embedding 'zwide' .* of width 1024, .* takes 768$"):
        reads.parts("a embedding:zwide", TEN, "prompt")
    with pytest.raises(
        InvalidRequest, match=r"^negative_prompt: the embedding 'zmany' has 76 vectors, more than the 75"
    ):
        reads.whole("a embedding:zmany", TEN, "negative_prompt")


def test_no_more_prompts_than_rows_allow_are_joined(vocabulary: Vocabulary) -> None:
    assert len(reader(vocabulary).parts(" AND ".join("a" * MAX_PARTS), TEN, "prompt")) == MAX_PARTS
    with pytest.raises(InvalidRequest, match=r"^prompt: 1,000 prompts are joined by AND, at most 16 are allowed$"):
        reader(vocabulary).parts("AND " * 999, TEN, "prompt")


def test_chunks_are_counted_over_all_versions_and_prompts(vocabulary: Vocabulary) -> None:
    alternatives = "|".join(f"v{number}" for number in range(120))
    text = "word " * 300 + f"[{alternatives}]"  # five chunks a version
    with pytest.raises(InvalidRequest, match=r"^prompt: .*more than 512 chunks of 75 tokens$"):
        reader(vocabulary).parts(text, Steps(150), "prompt")
    reads = reader(vocabulary)
    reads.parts("word " * 75 * (MAX_CHUNKS - 1), TEN, "prompt")
    reads.whole("a", TEN, "negative_prompt")
    reads.whole("a", Steps(20), "negative_prompt")
    with pytest.raises(InvalidRequest, match=r"^negative_prompt: "):
        reads.whole("b", TEN, "negative_prompt")


def test_characters_are_counted_over_all_versions(vocabulary: Vocabulary) -> None:
    """They take time even if they are no tokens."""
    alternatives = "|".join(f"v{number}" for number in range(100))
    with pytest.raises(InvalidRequest, match=r"^prompt: .*more than 262,144 characters$"):
        reader(vocabulary).parts(" " * 7_000 + f"[{alternatives}]", Steps(150), "prompt")
