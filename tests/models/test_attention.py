import math

import pytest
import torch
from torch import Tensor

from sd_core.models.attention import attention


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
def test_attention(heads: int, keys: int, causal: bool) -> None:
    q, k, v = torch.randn(2, 7, 8), torch.randn(2, keys, 8), torch.randn(2, keys, 8)
    torch.testing.assert_close(attention(q, k, v, heads, causal), by_hand(q, k, v, heads, causal))
