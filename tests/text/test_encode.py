"""Prompts are encoded together, and those seen before not again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.pipeline.model import StableDiffusion
from sd_core.text.encode import REMEMBERED, PromptEncoder

Ids = tuple[int, ...]


@pytest.fixture
def batches(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each forward held."""
    seen: list[int] = []
    encoder = tiny_model.networks.text_encoder
    forward = type(encoder).forward

    def counted(self: Any, ids: Tensor) -> Tensor:
        seen.append(len(ids))
        return forward(self, ids)

    monkeypatch.setattr(type(encoder), "forward", counted)
    return seen


@pytest.fixture
def prompts(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> PromptEncoder:
    monkeypatch.setattr(tiny_model.prompts, "_remembered", type(tiny_model.prompts._remembered)())
    return tiny_model.prompts


def ids(prompts: PromptEncoder, text: str) -> Ids:
    return prompts.tokenize(text, "prompt")[0]


def test_only_unknown_prompts_are_encoded(prompts: PromptEncoder, batches: list[int]) -> None:
    cat, nothing, dog = (ids(prompts, text) for text in ("a cat", "", "a dog"))
    first = prompts.encode([cat, nothing])
    again = prompts.encode([dog, nothing, dog])
    assert batches == [2, 1]
    assert first[1] is again[1] and again[0] is again[2]
    assert first[0].shape == (1, 77, first[0].shape[2])
    alone = PromptEncoder.encode(prompts, [cat])[0]
    torch.testing.assert_close(alone, first[0])
    assert not torch.equal(first[0], first[1])


def test_the_prompts_used_last_are_the_ones_kept(prompts: PromptEncoder, batches: list[int]) -> None:
    nothing = ids(prompts, "")
    for number in range(REMEMBERED + 5):
        prompts.encode([ids(prompts, str(number)), nothing])
    assert batches == [2] + [1] * (REMEMBERED + 4)
    prompts.encode([nothing, ids(prompts, str(REMEMBERED + 4))])
    assert len(batches) == REMEMBERED + 5
    prompts.encode([ids(prompts, "0")])
    assert len(batches) == REMEMBERED + 6


def test_words_past_the_end_are_named(prompts: PromptEncoder) -> None:
    tokens, warnings = prompts.tokenize("word " * 100, "negative_prompt")
    assert len(tokens) == 77
    (warning,) = warnings
    assert warning.startswith("negative_prompt is longer than 75 tokens") and "word" in warning
