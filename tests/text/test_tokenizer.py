"""The tokenizer beside transformers' own, and what it says when its files are wrong."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer as ReferenceTokenizer

from sd_core.errors import ModelError
from sd_core.text.tokenizer import CLIPTokenizer


@pytest.fixture(scope="module")
def reference(clip_vocabulary: Path) -> Any:
    return ReferenceTokenizer.from_pretrained(str(clip_vocabulary))


def reference_ids(reference: Any, text: str) -> list[int]:
    ids: list[int] = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
    return ids


TEXTS = [
    "",
    "a photo of an astronaut riding a horse on mars",
    "  Spaces\t\tand\n\nlines \r\n and\u00a0no-break\u3000ideographic ",
    "it's they're I'LL we've he'd CAN'T 'tis",
    "emoji 🐉🔥 👩‍👩‍👧‍👦 🇩🇪 ✨",
    "富士山の前の猫 漢字 한국어 ไทย العربية עברית हिन्दी",
    "cafe\u0301 café n\u0303 ñ e\u0301\u0302\u0303",
    "\x00\x01\x02 control \x7f \x1b[31m \u200b zero \ufeff width",
    "numbers 1234567890 3.14 ½ ² Ⅷ ٣",
    "!!!???...---___###$$$%%% (((masterpiece:1.3))) [[low quality]] <lora:x:1>",
    "<|startoftext|> a cat <|endoftext|> hidden <|endoftext|>",
    "<|ENDOFTEXT|> <|endoftext|",
    "ＦＵＬＬＷＩＤＴＨ ﬁ ligature İstanbul ẞ ǅ Σς",
    "&amp; &lt;b&gt; html <br/>",
    "𝕸𝖆𝖙𝖍 𝒻𝒶𝓃𝒸𝓎 \U0010ffff \ud7ff \ue000",
    "x" * 10_000,
    "word " * 2_000,
    "日本" * 5_000,
    "a\u0300" * 3_000,
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_ids_are_transformers_own(tokenizer: CLIPTokenizer, reference: Any, text: str) -> None:
    assert list(tokenizer.encode(text, 77).ids) == reference_ids(reference, text)


@settings(max_examples=400, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=120))
def test_ids_are_transformers_own_on_any_text(tokenizer: CLIPTokenizer, reference: Any, text: str) -> None:
    assert list(tokenizer.encode(text, 77).ids) == reference_ids(reference, text)


def test_a_known_prompt(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer.encode("a photo of a cat", 77).ids
    assert ids[:7] == (49406, 320, 1125, 539, 320, 2368, 49407)
    assert ids[7:] == (49407,) * 70


def test_what_does_not_fit_is_cut_off(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer.encode("cat " * 74 + "MOUNTAIN lake", 77).ids
    assert len(ids) == 77 and ids == (*tokenizer.encode("cat " * 74 + "mountain", 77).ids[:76], tokenizer.eos)


def test_each_token_is_placed_in_its_text(tokenizer: CLIPTokenizer) -> None:
    text = "a  Photo,of é"
    split = tokenizer.split(text)
    assert [start for _, start in split] == [0, 3, 8, 9, 12]
    assert tuple(token for token, _ in split) == tokenizer.encode(text, 7).ids[1:6]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("vocab.json", None, "vocab.json is missing"),
        ("merges.txt", None, "merges.txt is missing"),
        ("vocab.json", b"{", "vocab.json cannot be read"),
        ("vocab.json", b"[1, 2]", "not CLIP's vocabulary"),
        ("vocab.json", b'{"a": 1}', "no entry '<|startoftext|>'"),
        ("vocab.json", b"\xff\xfe\x00", "vocab.json cannot be read"),
        ("vocab.json", b'{"<|startoftext|>": "0", "<|endoftext|>": 1}', "not CLIP's vocabulary"),
        ("merges.txt", b"a b c\n", "a merge is two tokens"),
        ("merges.txt", b"qqq zzz\n", "merges.txt does not fit"),
    ],
)
def test_broken_files_are_named(
    clip_vocabulary: Path, tmp_path: Path, name: str, content: bytes | None, says: str
) -> None:
    for file in clip_vocabulary.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"(?s).*") as refused:
        CLIPTokenizer.load(tmp_path)
    assert says in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)
