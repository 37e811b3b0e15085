"""The contexts of each call: what is encoded once, how it is joined, and what an image keeps of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.errors import InvalidRequest
from sd_core.pipeline.conditioning import CHUNKS_A_WORK, Conditioning, encoded
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prompts import read_prompts, reader_of
from sd_core.pipeline.sample import Run
from sd_core.work import Call, Context, TextWork
from tests.support.drive import drive

LATENTS = torch.zeros(1, 4, 2, 2)


def run_of(sampler: str = "euler", steps: int = 10) -> Run:
    return Run(sampler, "default", steps, 7.5)


def conditioning(
    model: StableDiffusion, prompt: str, negative_prompt: str = "", syntax: str = "a1111", **read: Any
) -> tuple[Conditioning, list[TextWork]]:
    """The conditioning of prompts, and the works that it asked for."""
    run = read.pop("run", run_of())
    prompts = read_prompts(reader_of(model, syntax), model, prompt, negative_prompt, run, **read)
    encoder = model.networks.text_encoder

    def answer(work: TextWork) -> tuple[Context, ...]:
        states = encoder(torch.tensor(work.prompts), work.skip)
        return tuple(Context(tokens, each) for tokens, each in zip(work.prompts, states.split(1), strict=True))

    with torch.inference_mode():
        return drive(encoded(prompts, model), answer)


def states(model: StableDiffusion, *texts: str, skip: int = 0) -> list[Tensor]:
    ids = torch.tensor([model.tokenizer.encode(text, 77).ids for text in texts])
    with torch.inference_mode():
        return list(model.networks.text_encoder(ids, skip).split(1))


def context(conditions: Conditioning, step: int = 0, call: int = 0) -> Context:
    ((positive, _),) = conditions.at(Call(LATENTS, 1.0, step, call)).positive
    return positive


def test_a_short_prompt_is_its_hidden_states(tiny_model: StableDiffusion) -> None:
    conditions, works = conditioning(tiny_model, "a cat", "fog")
    cat, fog = states(tiny_model, "a cat", "fog")
    rows = conditions.at(Call(LATENTS, 1.0, 3))
    ((positive, weight),) = rows.positive
    assert len(works) == 1 and len(works[0].prompts) == 2 and weight == 1.0
    torch.testing.assert_close(positive.states, cat)
    torch.testing.assert_close(rows.negative.states, fog)


def test_chunks_follow_one_another(tiny_model: StableDiffusion) -> None:
    conditions, works = conditioning(tiny_model, "a BREAK b BREAK a")
    a, b = states(tiny_model, "a", "b")
    torch.testing.assert_close(context(conditions).states, torch.cat([a, b, a], dim=1))
    assert len(works[0].prompts) == 3, "equal chunks are encoded once, beside the negative prompt's"


def test_a1111s_weights_keep_the_mean_of_the_states(tiny_model: StableDiffusion) -> None:
    conditions, _ = conditioning(tiny_model, "(a:2)b")
    (plain,) = states(tiny_model, "a b")
    weights = torch.ones(77)
    weights[1] = 2
    expected = plain * weights[None, :, None]
    expected = expected * (plain.mean() / expected.mean())
    torch.testing.assert_close(context(conditions).states, expected, rtol=1e-5, atol=1e-5)


def test_comfys_weights_need_one_more_prompt(tiny_model: StableDiffusion) -> None:
    conditions, works = conditioning(tiny_model, "a (b:0.5)", "c", syntax="comfy")
    plain, empty = states(tiny_model, "a b", "")
    expected = plain.clone()
    expected[:, 2] = empty[:, 2] + 0.5 * (plain[:, 2] - empty[:, 2])
    torch.testing.assert_close(context(conditions).states, expected, rtol=1e-5, atol=1e-5)
    assert len(works[0].prompts) == 3
    assert len(conditioning(tiny_model, "a (b)", "", syntax="comfy")[1][0].prompts) == 2


def test_an_edit_changes_the_context_at_its_step(tiny_model: StableDiffusion) -> None:
    conditions, _ = conditioning(tiny_model, "[a:b:0.5]", "[c::2]")
    a, b = states(tiny_model, "a", "b")
    for step in range(10):
        torch.testing.assert_close(context(conditions, step).states, a if step <= 5 else b)
    negatives = [conditions.at(Call(LATENTS, 1.0, step)).negative.key for step in range(10)]
    assert len(set(negatives[:3])) == 1 and len(set(negatives[3:])) == 1 and negatives[0] != negatives[-1]


def test_a_solver_of_two_calls_a_step_counts_calls(tiny_model: StableDiffusion) -> None:
    half, _ = conditioning(tiny_model, "[a:b:0.5]", run=run_of("heun"))
    third, _ = conditioning(tiny_model, "[a:b:3]", run=run_of("heun"))
    calls = [(step, call) for step in range(10) for call in range(2)]
    for conditions, last in ((half, 10), (third, 3)):
        keys = [context(conditions, *each).key for each in calls]
        assert keys == [keys[0]] * (last + 1) + [keys[-1]] * (19 - last) and keys[0] != keys[-1]


def test_a_second_pass_counts_its_own_steps(tiny_model: StableDiffusion) -> None:
    first, second = run_of(steps=20), run_of(steps=10)
    begun, _ = conditioning(tiny_model, "[a:b:0.5]", run=second, first=first)
    later, _ = conditioning(tiny_model, "[a:b:1.5]", run=second, first=first)
    b, a = states(tiny_model, "b", "a")
    torch.testing.assert_close(context(begun, 0).states, b)
    torch.testing.assert_close(context(later, 5).states, a)
    torch.testing.assert_close(context(later, 6).states, b)


def test_prompts_joined_by_and_are_rows_with_weights(tiny_model: StableDiffusion) -> None:
    conditions, _ = conditioning(tiny_model, "a :0.5 AND [b:c:3] : -1", "d")
    rows = conditions.at(Call(LATENTS, 1.0, 9))
    assert [weight for _, weight in rows.positive] == [0.5, -1.0]
    for found, expected in zip([each for each, _ in rows.positive], states(tiny_model, "a", " c"), strict=True):
        torch.testing.assert_close(found.states, expected)


def test_alternating_prompts_are_encoded_once_each(tiny_model: StableDiffusion) -> None:
    conditions, works = conditioning(tiny_model, "[a|b]")
    assert [len(work.prompts) for work in works] == [3]
    keys = [context(conditions, step).key for step in range(10)]
    assert keys[0] != keys[2]
    assert keys == [keys[0], keys[0], *[keys[2], keys[0]] * 4]


def test_many_chunks_are_encoded_some_at_a_time(tiny_model: StableDiffusion) -> None:
    text = " BREAK ".join(f"word {number}" for number in range(40))
    conditions, works = conditioning(tiny_model, text)
    assert [len(work.prompts) for work in works] == [CHUNKS_A_WORK, CHUNKS_A_WORK, 9]
    assert context(conditions).states.shape == (1, 40 * 77, tiny_model.networks.text_encoder.config.width)


def test_equal_prompts_have_equal_keys_in_every_job(tiny_model: StableDiffusion) -> None:
    def key(prompt: str, **read: Any) -> Any:
        return context(conditioning(tiny_model, prompt, **read)[0]).key

    assert key("a (cat:1.1)") == key("a (cat)")
    assert len({key("a cat"), key("a (cat)"), key("a cat", clip_skip=2), key("a (cat)", syntax="comfy")}) == 4


def test_joined_contexts_are_shared_by_the_images_of_a_job(tiny_model: StableDiffusion) -> None:
    prompts = read_prompts(reader_of(tiny_model, "a1111"), tiny_model, "(a:2) BREAK b", "", run_of())

    def answer(work: TextWork) -> tuple[Context, ...]:
        return tuple(Context(tokens, torch.ones(1, 77, 8)) for tokens in work.prompts)

    first, second = (drive(encoded(prompts, tiny_model), answer)[0] for _ in range(2))
    assert context(first).states is context(second).states
    assert context(first).states is context(first, 5).states


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_counts_layers_from_the_last(tiny_model: StableDiffusion, clip_skip: int) -> None:
    conditions, works = conditioning(tiny_model, "a cat", clip_skip=clip_skip)
    assert works[0].skip == clip_skip - 1
    torch.testing.assert_close(context(conditions).states, states(tiny_model, "a cat", skip=clip_skip - 1)[0])


def test_more_layers_than_there_are_cannot_be_skipped(tiny_model: StableDiffusion) -> None:
    with pytest.raises(InvalidRequest, match="clip_skip: 4 is more than this model's text encoder has layers: 3"):
        conditioning(tiny_model, "a cat", clip_skip=4)


def test_errors_name_the_field_that_is_meant(tiny_model: StableDiffusion) -> None:
    reader = reader_of(tiny_model, "a1111")
    with pytest.raises(InvalidRequest, match=r"^hires\.negative_prompt: "):
        read_prompts(reader, tiny_model, "a", "(a:5000)", run_of(), names=("hires.prompt", "hires.negative_prompt"))
