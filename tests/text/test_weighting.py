"""Weighted hidden states beside the formulas, written out token by token, on the states of a tiny text encoder."""

import pytest
import torch
from torch import Tensor

from sd_core.pipeline.model import StableDiffusion
from sd_core.text.chunks import Chunk
from sd_core.text.weighting import join


@pytest.fixture(scope="module")
def states(tiny_model: StableDiffusion) -> Tensor:
    """Of three prompts, (3, 77, width)."""
    ids = [tiny_model.tokenizer.encode(text, 77).ids for text in ("a red cat", "on a (blue) mat", "")]
    with torch.inference_mode():
        encoded: Tensor = tiny_model.networks.text_encoder(torch.tensor(ids))
    return encoded


def chunk(**weights: float) -> Chunk:
    """A chunk whose tokens have these weights, by place: `_3=1.5` is that of token 3."""
    by_place = {int(place[1:]): weight for place, weight in weights.items()}
    return Chunk((0,) * 77, tuple(by_place.get(place, 1.0) for place in range(77)))


def test_a1111_multiplies_and_restores_the_mean_of_each_chunk(states: Tensor) -> None:
    chunks = [chunk(_2=1.3, _5=0.25, _6=-0.5), chunk(), chunk(_1=1.1)]
    joined = join(states.split(1), chunks)
    assert joined.shape == (1, 3 * 77, states.shape[2])
    for index, each in enumerate(chunks):
        expected = states[index].double().clone()
        for place, weight in enumerate(each.weights):
            expected[place] = expected[place] * weight
        expected *= states[index].double().mean() / expected.mean()
        part = joined[0, 77 * index : 77 * (index + 1)]
        torch.testing.assert_close(part.double(), expected, rtol=1e-5, atol=1e-6)
        assert part.double().mean().item() == pytest.approx(states[index].double().mean().item(), rel=1e-4)
    assert torch.equal(joined[0, 77:154], states[1])


def test_comfy_moves_away_from_the_empty_prompt(states: Tensor) -> None:
    chunks = [chunk(_2=1.3, _5=0.0, _6=-0.5), chunk()]
    empty = states[2:]
    joined = join(states[:2].split(1), chunks, empty)
    for index, each in enumerate(chunks):
        for place, weight in enumerate(each.weights):
            z, base = states[index, place].double(), empty[0, place].double()
            torch.testing.assert_close(
                joined[0, 77 * index + place].double(), base + weight * (z - base), rtol=1e-5, atol=1e-6
            )
    assert torch.equal(joined[0, :2], states[0, :2]), "nothing is computed where the weight is 1"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_states_dtype_is_kept_and_the_arithmetic_is_float32(states: Tensor, dtype: torch.dtype) -> None:
    half = states[:1].to(dtype)
    joined = join([half], [chunk(_2=900.0)])
    assert joined.dtype == dtype
    assert torch.equal(joined, join([half.float()], [chunk(_2=900.0)]).to(dtype))
