"""Adapters in one forward: each work's rows get its own, as if they were merged into the weights for it alone."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sd_core.adapters.apply import Adapter, Strength, applied_to_text, applied_to_unet
from sd_core.adapters.blocks import ALL, Blocks
from sd_core.engine.kinds.text import TextKind
from sd_core.engine.kinds.unet import UNetKind
from sd_core.engine.pool import Pool
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.networks import Applied
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Attachments, Context, Extras, TextWork, UNetWork
from tests.support.adapters import merged, random_adapter
from tests.support.counting import counted, normal

Strengths = dict[str, float]
"""An adapter's strength in the UNet, by the adapter's letter."""

ADAPTERS = "abc"


@pytest.fixture(scope="module")
def adapters(tiny_model: StableDiffusion) -> dict[str, Adapter]:
    networks = tiny_model.networks
    return {
        letter: random_adapter(networks.unet, networks.text_encoder, seed, rank=2 + seed)
        for seed, letter in enumerate(ADAPTERS)
    }


@pytest.fixture
def kind(tiny_model: StableDiffusion) -> UNetKind:
    return UNetKind(Pool([tiny_model]), max_batch=8)


def present(applied: Iterable[Applied | None]) -> tuple[Applied, ...]:
    return tuple(each for each in applied if each is not None)


def in_unet(adapters: dict[str, Adapter], strengths: Strengths) -> Attachments:
    return Attachments(
        present(applied_to_unet(adapters[letter], Strength(unet=value)) for letter, value in strengths.items())
    )


def work(
    model: StableDiffusion, seed: int, contexts: tuple[int, ...], attached: Attachments, tokens: int = 7
) -> UNetWork:
    width = model.networks.unet.config.context_dim
    return UNetWork(
        model.unet_key,
        normal(1, 4, 8, 8, seed=seed),
        100.0 + seed,
        tuple(Context((each, tokens), normal(1, tokens, width, seed=each)) for each in contexts),
        (0,) * len(contexts),
        attached=attached,
    )


class Merged:
    """UNets with adapters in their weights."""

    def __init__(self, model: StableDiffusion, adapters: dict[str, Adapter]) -> None:
        self._unet, self._adapters = model.networks.unet, adapters

    def __call__(self, one: UNetWork, strengths: Strengths) -> Tensor:
        """The output of a work, row by row."""
        unet = UNet(self._unet.config).requires_grad_(False).eval()
        changes = [(self._adapters[letter].unet, value) for letter, value in strengths.items()]
        unet.load_state_dict(merged(self._unet, changes))
        rows = []
        for image, context in zip(one.image_of_row, one.contexts, strict=True):
            given = replace(unet.given(context.states), padding=unet.circular if one.extras.tiling else {})
            rows.append(unet(one.latents[image : image + 1], torch.tensor([one.timestep]), given))
        return torch.cat(rows)


MIXES: dict[str, list[Strengths]] = {
    "one": [{"a": 1.0}],
    "one beside none": [{}, {"a": 1.0}],
    "four": [{"a": 0.7}, {"b": -1.0}, {}, {"c": 1.5}],
    "several each": [{"a": 0.5, "b": 0.5}, {"b": 0.5, "a": 1.0}, {"a": 0.5, "b": 0.5}],
    "the same, apart": [{"a": 1.0}, {"b": 1.0}, {"a": 1.0}, {}, {"b": 1.0}],
}


@pytest.mark.parametrize(
    ("mix", "tiling"), [*((name, False) for name in MIXES), ("four", True)], ids=[*MIXES, "seamless"]
)
@torch.inference_mode()
def test_rows_of_one_forward_have_adapters_of_their_own(
    tiny_model: StableDiffusion,
    kind: UNetKind,
    adapters: dict[str, Adapter],
    mix: str,
    monkeypatch: pytest.MonkeyPatch,
    tiling: bool,
) -> None:
    works = [
        replace(
            work(tiny_model, seed, (1, 2) if seed % 2 else (3,), in_unet(adapters, strengths)),
            extras=Extras(tiling=tiling),
        )
        for seed, strengths in enumerate(MIXES[mix])
    ]
    forwards = counted(monkeypatch, UNet, "forward")
    answers = kind.run(works)
    assert forwards == [len(works)]
    reference = Merged(tiny_model, adapters)
    for answer, one, strengths in zip(answers, works, MIXES[mix], strict=True):
        torch.testing.assert_close(answer, reference(one, strengths), rtol=1e-3, atol=1e-3)
        if strengths:
            assert (answer - reference(one, {})).abs().max() > 0.1


@torch.inference_mode()
def test_prompts_of_different_lengths_and_extras_share_forwards_with_adapters(
    tiny_model: StableDiffusion, kind: UNetKind, adapters: dict[str, Adapter]
) -> None:
    works = [
        work(tiny_model, 1, (1, 2), in_unet(adapters, {"a": 1.0}), tokens=14),
        work(tiny_model, 2, (1,), in_unet(adapters, {"b": 1.0})),
        work(tiny_model, 3, (1, 2), in_unet(adapters, {"a": 1.0})),
        replace(work(tiny_model, 4, (1, 2, 2), in_unet(adapters, {"a": 1.0, "c": 1.0})), perturbed=(2,)),
        replace(
            work(tiny_model, 5, (1, 2), in_unet(adapters, {"b": 1.0})), image_of_row=(1, 0), latents=normal(2, 4, 8, 8)
        ),
        replace(work(tiny_model, 6, (1, 2), in_unet(adapters, {"c": 1.0})), keeps_deep=True),
    ]
    for answer, one in zip(kind.run(works), works, strict=True):
        (alone,) = kind.run([one])
        for mine, expected in zip(
            answer if one.keeps_deep else (answer,), alone if one.keeps_deep else (alone,), strict=True
        ):
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(kind.run_in_parts(one), alone, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_weights_stay_what_they_are(tiny_model: StableDiffusion, kind: UNetKind, adapters: dict[str, Adapter]) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_model.networks.unet.state_dict().items()}
    plain = work(tiny_model, 1, (1, 2), Attachments())
    (expected,) = kind.run([plain])
    kind.run([work(tiny_model, 1, (1, 2), in_unet(adapters, {"a": 1.0, "b": 2.0})), plain])
    after = tiny_model.networks.unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    (again,) = kind.run([plain])
    assert torch.equal(again, expected), "nothing of an adapter stays in a cache of plain prompts"


@torch.inference_mode()
def test_prompts_are_read_once_for_each_set_of_adapters(
    tiny_model: StableDiffusion, kind: UNetKind, adapters: dict[str, Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = counted(monkeypatch, UNet, "read")
    for step in range(3):
        for strengths in ({}, {"a": 1.0}, {"a": 0.5}):
            kind.run([work(tiny_model, step, (1, 2), in_unet(adapters, strengths))])
    assert reads == [2, 2, 2]


@torch.inference_mode()
def test_the_text_encoder_has_adapters_too(tiny_model: StableDiffusion, adapters: dict[str, Adapter]) -> None:
    encoder = tiny_model.networks.text_encoder
    kind = TextKind(Pool([tiny_model]))
    prompt = tuple(range(77))

    def encoded(strengths: Strengths) -> Tensor:
        applied = present(applied_to_text(adapters[name], Strength(text=value)) for name, value in strengths.items())
        one = TextWork(tiny_model.text_key, (prompt,), adapters=applied)
        ((context,),) = kind.run([one])
        ((again,),) = kind.run([one])
        assert again.states is context.states
        return context.states

    for strengths in ({}, {"a": 1.0}, {"a": -0.5, "b": 1.0}, {}):
        reference = CLIPTextEncoder(encoder.config).requires_grad_(False).eval()
        changes = [(adapters[letter].text, value) for letter, value in strengths.items()]
        reference.load_state_dict(merged(encoder, changes))
        torch.testing.assert_close(encoded(strengths), reference(torch.tensor([prompt])), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(encoded({}), encoded({"a": 1.0}), atol=0.1)


def test_works_of_different_adapters_share_forwards_of_the_unet_and_not_of_the_text_encoder(
    tiny_model: StableDiffusion, kind: UNetKind, adapters: dict[str, Adapter]
) -> None:
    plain, adapted = (work(tiny_model, 1, (1,), in_unet(adapters, each)) for each in ({}, {"a": 1.0}))
    assert kind.key(plain) == kind.key(adapted)
    text = TextKind(Pool([tiny_model]))
    one = TextWork(tiny_model.text_key, ((1, 2),))
    other = replace(one, adapters=present([applied_to_text(adapters["a"], Strength())]))
    assert text.key(one) != text.key(other)
    assert text.identity(one) != text.identity(other)
    equal = replace(one, adapters=present([applied_to_text(adapters["a"], Strength())]))
    assert text.identity(other) == text.identity(equal)


def test_an_adapter_without_strength_is_not_applied(adapters: dict[str, Adapter]) -> None:
    assert applied_to_unet(adapters["a"], Strength(unet=0.0)) is None
    assert applied_to_text(adapters["a"], Strength(text=0.0)) is None
    assert applied_to_unet(replace(adapters["a"], unet={}), Strength()) is None
    only_middle = Blocks(tuple(float(name == "M00") for name in ALL))
    applied = applied_to_unet(adapters["a"], Strength(blocks=only_middle))
    assert applied is not None
    assert {name.split(".")[0] for name in applied.layers} == {"middle_block", "time_embed", "out"}
    assert applied_to_text(adapters["a"], Strength(blocks=only_middle)) is None
