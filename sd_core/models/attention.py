"""Attention and the transformer that the UNet places between its convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd_core.models.given import NOTHING, Given, ImageRead, KeysValues
from sd_core.models.layers import Conv2d, GatedLinear, LayerNorm, Linear, Named, group_norm
from sd_core.models.merging import Merging

SCORES_AT_ONCE = 2**20
"""Entries of the score matrix that are computed together where attention is sliced: 2 MB in bfloat16, in cache."""

LEAST_SCORES = 2**14
"""Of one head; with fewer, slicing costs more than it gains."""

COLUMNS = 16
"""Float32 numbers in a register of AVX-512: a product of a multiple of so many columns runs about twice as fast."""

SOFTMAX_COLUMNS = 32
"""Bfloat16 numbers in such a register: the softmax of a row that ends within one takes several times as long, so that
keys are padded to a multiple. 77 tokens become 96."""


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Multi-head scaled dot-product attention: q (B, T, C), k and v (B, S, C) -> (B, T, C)."""
    rough = q.device.type == "cpu" and q.dtype is torch.bfloat16 and not torch.is_grad_enabled()
    if rough and not causal and q.shape[1] * k.shape[1] >= LEAST_SCORES:
        return sliced_attention(q, k, v, heads)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, T, C / heads)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


def sliced_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The same as plain matrix products over slices of heads and queries, without gradients.

    torch's fused CPU kernel does not use the processor's bfloat16 products, which these do.
    """
    tokens, keys_count = q.shape[1], k.shape[1]
    width = keys_count + -keys_count % SOFTMAX_COLUMNS
    rows = max(1, min(tokens, SCORES_AT_ONCE // width))
    at_once = max(1, min(heads, SCORES_AT_ONCE // (rows * width)))
    out: Tensor = torch.empty_like(q, memory_format=torch.contiguous_format).unflatten(-1, (heads, -1))
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    dim = q.shape[-1]
    keys = F.pad((k * dim**-0.5).transpose(-1, -2), (0, width - keys_count)).contiguous()
    values = F.pad(v, (0, -dim % COLUMNS, 0, width - keys_count)).contiguous()
    # Written again by every slice: new memory for each would cost more than the softmax.
    scores, weights = q.new_empty(2, at_once, rows, width)
    for picture in range(len(q)):
        for head in range(0, heads, at_once):
            some = picture, slice(head, head + at_once)
            for row in range(0, tokens, rows):
                queries = q[some][:, row : row + rows]
                here = slice(len(queries)), slice(queries.shape[1])
                torch.bmm(queries, keys[some], out=scores[here])
                scores[here][..., keys_count:] = float("-inf")
                torch.softmax(scores[here], dim=-1, out=weights[here])
                summed = torch.bmm(weights[here], values[some])[..., :dim]
                out[picture, row : row + rows, some[1]] = summed.transpose(0, 1)
    return out.flatten(2)


class CrossAttention(Named, nn.Module):
    """Attention of x to a context; self-attention if the context is x itself."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(dim, dim, bias=False)
        self.to_k = Linear(context_dim, dim, bias=False)
        self.to_v = Linear(context_dim, dim, bias=False)
        self.to_out = nn.Sequential(Linear(dim, dim))

    def read(self, context: Tensor, given: Given = NOTHING) -> KeysValues:  # (B, S, context_dim)
        """Keys and values of a context, (B, S, dim) each."""
        return self.to_k(context, given=given), self.to_v(context, given=given)

    def forward(
        self, x: Tensor, keys_values: KeysValues, add: Tensor | None = None, given: Given = NOTHING
    ) -> Tensor:  # (B, T, dim)
        keys, values = keys_values
        queries = self.to_q(x, given=given)
        attended = attention(queries, keys, values, self.heads)
        for image in given.images.get(self.name, ()):
            attended = self._with_image(attended, queries, image)
        rows = given.identity.get(self.name)
        if rows is not None:
            attended = attended.index_copy(0, rows, values[rows])
        out: Tensor = self.to_out[0](attended, add, given)
        return out

    def _with_image(self, attended: Tensor, queries: Tensor, image: ImageRead) -> Tensor:  # (B, T, dim) each
        """`attended` and, for the rows of an image, what the same queries find in it; other rows stay as they are.

        Source: Ye et al. 2023, "IP-Adapter", equation 5.
        """
        if image.rows is None:
            return attended + attention(queries, image.keys, image.values, self.heads)
        return attended.index_add(0, image.rows, attention(queries[image.rows], image.keys, image.values, self.heads))


class GEGLU(nn.Module):
    """Gated linear unit with an exact GELU gate (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = GatedLinear(dim, hidden)

    def forward(self, x: Tensor, given: Given = NOTHING) -> Tensor:
        out: Tensor = self.proj(x, given)
        return out


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        # Index 1 is the dropout of training: it keeps its place, because names are the checkpoint's.
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Identity(), Linear(dim * 4, dim))

    def forward(self, x: Tensor, add: Tensor, given: Given = NOTHING) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x, given), add, given)
        return out


class BasicTransformerBlock(nn.Module):
    """Self-attention, attention to the prompt, feed-forward; each normalized before and added after."""

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, heads)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, int], given: Given, *, expands: bool) -> Tensor:  # (B, H * W, dim)
        if expands and self.attn1.name in given.identity:
            # Here the rows of an input differ before they read their prompts.
            x, given, expands = given.per_row(x), given.expanded, False
        x = self._attend_to_self(x, size, given)
        if expands:
            x, given = given.per_row(x), given.expanded
        x = self.attn2(self.norm2(x, given), given.keys_values[self.attn2.name], x, given)
        out: Tensor = self.ff(self.norm3(x, given), x, given)
        return out

    def _attend_to_self(self, x: Tensor, size: tuple[int, int], given: Given) -> Tensor:
        normed = self.norm1(x, given)
        ratio = given.merged.get(self.attn1.name)
        if ratio is None:
            out: Tensor = self.attn1(normed, self.attn1.read(normed, given), x, given)
            return out
        merging = Merging.of(x, size, ratio)
        merged = merging.merge(normed)
        return x + merging.unmerge(self.attn1(merged, self.attn1.read(merged, given), given=given))


class SpatialTransformer(nn.Module):
    """A transformer over the pixels of a feature map, with 1x1 convolutions into and out of it (v1's layout).

    The one that `expands` is the network's first: it receives one feature map per input and returns one per row,
    because the rows of an input differ from their first prompt on.
    """

    expands = False

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, context_dim, heads)])
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, given: Given) -> Tensor:  # (B, C, H, W)
        tokens = self.proj_in(self.norm(x, given), given=given).flatten(2).transpose(1, 2)  # (B, H * W, C)
        height, width = x.shape[2:]
        tokens = self.transformer_blocks[0](tokens, (height, width), given, expands=self.expands)
        residual = x
        if self.expands:
            residual, given = given.per_row(x), given.expanded
        out: Tensor = self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]), residual, given)
        return out
