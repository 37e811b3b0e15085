import math

import pytest
import torch
from torch import Tensor

from sd_core.models import attention as module
from sd_core.models.attention import attention, sliced_attention


def by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    outs = []
    for q_head, k_head, v_head in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        scores = q_head @ k_head.transpose(1, 2) / math.sqrt(q_head.shape[-1])
        if causal:
            later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        outs.append(scores.softmax(-1) @ v_head)
    return torch.cat(outs, -1)


@pytest.mark.parametrize(("heads", "keys", "causal"), [(1, 7, False), (4, 7, False), (2, 3, False), (2, 7, True)])
def test_attention_equals_the_formula(heads: int, keys: int, causal: bool) -> None:
    q, k, v = torch.randn(2, 7, 8), torch.randn(2, keys, 8), torch.randn(2, keys, 8)
    torch.testing.assert_close(attention(q, k, v, heads, causal), by_hand(q, k, v, heads, causal))


@pytest.mark.parametrize("keys", [5, 32, 33])
@pytest.mark.parametrize("at_once", [1, 100, 500, 100_000], ids=lambda count: f"{count} scores at once")
def test_sliced_attention_equals_the_formula(monkeypatch: pytest.MonkeyPatch, at_once: int, keys: int) -> None:
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    q, k, v = torch.randn(2, 7, 24), torch.randn(2, keys, 24), torch.randn(2, keys, 24)
    torch.testing.assert_close(sliced_attention(q, k, v, 3), by_hand(q, k, v, 3, causal=False))


def test_bfloat16_is_sliced_on_a_cpu_unless_gradients_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SCORES", 1)
    q, k, v = (torch.randn(2, 7, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    learning = attention(q, k, v, 2)
    learning.sum().backward()
    assert q.grad is not None
    with torch.inference_mode():
        torch.testing.assert_close(attention(q, k, v, 2), learning, rtol=0.05, atol=0.02)
