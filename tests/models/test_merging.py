"""Token merging beside its authors' code, and in the UNet."""

import pytest
import tomesd
import torch
from torch import Tensor

from sd_core.models import merging
from sd_core.models.given import Given
from sd_core.models.merging import Merging
from sd_core.models.unet import UNet
from tests.support.random_weights import TINY

SIZES = [(8, 8), (9, 7), (2, 2), (6, 4)]


def tokens(size: tuple[int, int], channels: int = 12) -> Tensor:
    return torch.randn(2, size[0] * size[1], channels, generator=torch.Generator().manual_seed(0))


def in_order(x: Tensor) -> Tensor:
    """The tokens of each row by their first number: attention does not depend on their order."""
    return x.gather(1, x[..., :1].argsort(dim=1).expand_as(x))


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_tokens_that_its_authors_merge(size: tuple[int, int], ratio: float) -> None:
    height, width = size
    x, other = tokens(size), tokens(size, 20).flip(1)
    merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(
        x, width, height, 2, 2, int(height * width * ratio), no_rand=True
    )
    ours = Merging.of(x, size, ratio)
    for each in (x, other):
        torch.testing.assert_close(in_order(ours.merge(each)), in_order(merge(each)))
        torch.testing.assert_close(ours.unmerge(ours.merge(each)), unmerge(merge(each)))


def test_large_pictures_are_compared_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tokens((8, 8))
    whole = Merging.of(x, (8, 8), 0.5)
    monkeypatch.setattr(merging, "SCORES_AT_ONCE", 2 * 16 * 5)
    sliced = Merging.of(x, (8, 8), 0.5)
    assert torch.equal(whole.gone, sliced.gone) and torch.equal(whole.into, sliced.into)


@pytest.mark.parametrize("size", [(1, 9), (5, 1), (8, 8)], ids=str)
def test_without_windows_or_ratio_nothing_is_merged(size: tuple[int, int]) -> None:
    x = tokens(size)
    nothing = Merging.of(x, size, 0.0 if size == (8, 8) else 0.5)
    assert nothing.merge(x).shape == x.shape
    assert torch.equal(nothing.unmerge(nothing.merge(x)), x)


@torch.inference_mode()
def test_a_unet_attends_to_merged_tokens_at_the_finest_resolution(unet: UNet) -> None:
    """Beside tomesd's formula around each of these self-attentions; the others are not touched."""
    latents, states = torch.randn(1, 4, 8, 8), torch.randn(1, 77, TINY.unet.context_dim)
    plain = unet.given(states)
    names = unet.finest_attentions
    assert names == [
        f"{stage}.1.transformer_blocks.0.attn1"
        for stage in (
            "input_blocks.1", "input_blocks.2", "output_blocks.9", "output_blocks.10", "output_blocks.11",
        )
    ]  # fmt: skip
    time = torch.tensor([500.0])
    expected = unet(latents, time, Given(plain.keys_values, merged=dict.fromkeys(names, 0.5)))
    entering: dict[str, Tensor] = {}

    for name in names:
        block = unet.get_submodule(name.removesuffix(".attn1"))
        block.norm1.register_forward_hook(lambda _, given, __, name=name: entering.__setitem__(name, given[0]))
        attn1, forward = block.attn1, block.attn1.forward

        def merged(x: Tensor, _: object, add: Tensor, given: Given, name: str = name, attn1=attn1, forward=forward):  # type: ignore[no-untyped-def]
            merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(entering[name], 8, 8, 2, 2, 32, no_rand=True)
            fewer = merge(x)
            return add + unmerge(forward(fewer, attn1.read(fewer), torch.zeros_like(fewer), given))

        attn1.forward = merged
    torch.testing.assert_close(unet(latents, time, plain), expected, rtol=1e-4, atol=1e-5)
    for name in names:
        del unet.get_submodule(name).forward
    assert (unet(latents, time, plain) - expected).abs().max() > 1e-3
