"""Controls in one forward: each work's rows get its own, and their neighbours none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sd_core.engine.kinds.hint import HintKind
from sd_core.engine.kinds.unet import UNetKind
from sd_core.engine.pool import Pool
from sd_core.models.controlnet import ControlNet
from sd_core.models.given import Given, Residuals
from sd_core.models.t2i_adapter import T2IAdapter
from sd_core.networks import Guide
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Attachments, Context, Control, Extras, Hint, HintWork, UNetWork
from tests.support.controls import controlnet, random_controlnet, random_hint, t2i_adapter
from tests.support.counting import counted, normal

SEAMLESS = Extras(tiling=True)


@pytest.fixture(scope="module")
def guides() -> Mapping[str, ControlNet | T2IAdapter]:
    return {
        "a": controlnet(key="a"),
        "b": controlnet(weights=random_controlnet(seed=5), key="b"),
        "adapter": t2i_adapter(),
    }


@pytest.fixture
def kind(tiny_model: StableDiffusion) -> UNetKind:
    return UNetKind(Pool([tiny_model]), max_batch=8)


def hinted(guide: Guide, seed: int, *, tiling: bool = False, size: int = 64) -> Hint:
    (hint,) = HintKind().run([HintWork(guide, seed, random_hint(size, size, seed), tiling)])
    return hint


def control(
    guide: ControlNet | T2IAdapter, seed: int, rows: tuple[int, ...] | None = None, *, tiling: bool = False
) -> Control:
    count = 4 if isinstance(guide, T2IAdapter) else 13
    scales = tuple(0.3 + 0.1 * (seed + level) for level in range(count))
    return Control(guide, hinted(guide, seed, tiling=tiling), scales, rows)


def work(
    model: StableDiffusion, seed: int, contexts: Sequence[int], *controls: Control, tokens: int = 7, channels: int = 4
) -> UNetWork:
    width = model.networks.unet.config.context_dim
    return UNetWork(
        model.unet_key,
        normal(1, channels, 8, 8, seed=seed),
        100.0 + seed,
        tuple(Context((each, tokens), normal(1, tokens, width, seed=each)) for each in contexts),
        (0,) * len(contexts),
        attached=Attachments(controls=controls),
    )


def reference(model: StableDiffusion, one: UNetWork) -> Tensor:
    """The output of a work row by row, each with its own pass of each network, its outputs scaled one by one."""
    unet, rows = model.networks.unet, []
    for row, context in enumerate(one.contexts):
        times = torch.tensor([one.timestep])
        residuals, features = list[Residuals](), list[Residuals]()
        for each in one.attached.controls:
            if each.rows is not None and row not in each.rows:
                continue
            outputs = each.hint.values
            if isinstance(each.network, ControlNet):
                padding = each.network.circular if one.extras.tiling else {}
                given = replace(each.network.given(context.states), padding=padding)
                outputs = each.network(one.latents, times, outputs[0], given)
            into = residuals if isinstance(each.network, ControlNet) else features
            into.append(Residuals([output * scale for output, scale in zip(outputs, each.scales, strict=True)]))
        given = Given(
            unet.read(context.states),
            padding=unet.circular if one.extras.tiling else {},
            control=tuple(residuals),
            features=tuple(features),
        )
        rows.append(unet(one.latents, times, given))
    return torch.cat(rows)


def assert_near(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("tiling", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "seamless"])
def test_rows_of_one_forward_have_controls_of_their_own(
    tiny_model: StableDiffusion,
    kind: UNetKind,
    guides: Mapping[str, Guide],
    tiling: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b, adapter = guides["a"], guides["b"], guides["adapter"]
    works = [
        work(tiny_model, 1, (1, 2)),
        work(tiny_model, 2, (1, 3), control(a, 1, tiling=tiling)),
        work(tiny_model, 3, (2,), control(b, 2, tiling=tiling), control(adapter, 3, tiling=tiling)),
        work(tiny_model, 4, (1, 4), control(a, 3, (1,), tiling=tiling), control(a, 4, tiling=tiling)),
    ]
    works = [replace(each, extras=SEAMLESS) if tiling else each for each in works]
    expected = [reference(tiny_model, each) for each in works]
    plain = [reference(tiny_model, replace(each, attached=Attachments())) for each in works]
    forwards = counted(monkeypatch, ControlNet, "forward")
    outputs = kind.run(works)
    # Network "a" has three inputs, because two hints steer one of its works.
    assert sorted(forwards) == [1, 3], "one pass for each network"
    for output, own, without in zip(outputs, expected, plain, strict=True):
        assert_near(output, own)
        changed = (own - without).abs().amax(dim=(1, 2, 3)) > 0.01
        assert ((output - without).abs().amax(dim=(1, 2, 3)) > 0.01).tolist() == changed.tolist()
    assert len({kind.key(each) for each in works}) == 1


@torch.inference_mode()
def test_prompts_of_several_lengths(tiny_model: StableDiffusion, kind: UNetKind, guides: Mapping[str, Guide]) -> None:
    """They are repeated to one length for the UNet, and so they are for its controls."""
    one = replace(work(tiny_model, 1, (1,), control(guides["a"], 1)))
    long = work(tiny_model, 2, (2,), control(guides["a"], 2), tokens=21)
    mixed = replace(one, contexts=(*one.contexts, *long.contexts), image_of_row=(0, 0))
    for output, each in zip(kind.run([one, long, mixed]), [one, long, mixed], strict=True):
        assert_near(output, reference(tiny_model, each))


@torch.inference_mode()
def test_an_inpainting_network_is_steered_by_its_latents(
    tiny_model: StableDiffusion, guides: Mapping[str, Guide]
) -> None:
    """Its further channels are the UNet's alone."""
    nine = tiny_model.networks.unet
    controls = [control(guides["a"], 1)]
    four = work(tiny_model, 1, (1,), *controls)
    seen = list[Tensor]()
    hook = guides["a"].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    more = replace(four, latents=torch.cat([four.latents, normal(1, 5, 8, 8)], dim=1))
    with pytest.raises(RuntimeError):  # this UNet takes four channels
        UNetKind(Pool([tiny_model]), max_batch=8).run([more])
    hook.remove()
    assert nine.config.in_channels == 4
    assert torch.equal(seen[0], four.latents)


@torch.inference_mode()
def test_the_outermost_block_alone(
    tiny_model: StableDiffusion, kind: UNetKind, guides: Mapping[str, Guide], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the deep features of the same step it equals the whole network, without a whole pass of the control."""
    works = [
        work(tiny_model, 1, (1, 2), control(guides["a"], 1), control(guides["adapter"], 2)),
        work(tiny_model, 2, (1,)),
    ]
    whole = kind.run([replace(each, keeps_deep=True) for each in works])
    forwards = counted(monkeypatch, ControlNet, "forward")
    again = kind.run([replace(each, deep=deep) for each, (_, deep) in zip(works, whole, strict=True)])
    assert forwards == []
    for output, (expected, _) in zip(again, whole, strict=True):
        assert_near(output, expected)


@torch.inference_mode()
def test_in_parts_a_work_keeps_its_controls(
    tiny_model: StableDiffusion, kind: UNetKind, guides: Mapping[str, Guide]
) -> None:
    one = work(tiny_model, 1, (1, 2, 3), control(guides["a"], 1, (1, 2)), control(guides["b"], 2))
    assert_near(kind.run_in_parts(one), kind.run([one])[0])


def test_costs(tiny_model: StableDiffusion, kind: UNetKind, guides: Mapping[str, Guide]) -> None:
    plain, adapted = work(tiny_model, 1, (1, 2)), work(tiny_model, 1, (1, 2), control(guides["adapter"], 1))
    both, half = (work(tiny_model, 1, (1, 2), control(guides["a"], 1, rows)) for rows in (None, (1,)))
    assert kind.cost(plain) == kind.cost(adapted) < kind.cost(half) < kind.cost(both) < 2 * kind.cost(plain)
    assert kind.bytes(plain) < kind.bytes(half) < kind.bytes(both) == kind.bytes(adapted)


class TestHints:
    def test_the_same_hint_is_embedded_once(self, guides: Mapping[str, Guide], monkeypatch: pytest.MonkeyPatch) -> None:
        kind, embeddings = HintKind(), counted(monkeypatch, ControlNet, "embed")
        one = HintWork(guides["a"], "hint", random_hint(64, 64))
        (first,), (again,) = kind.run([one]), kind.run([replace(one, pixels=one.pixels.clone())])
        assert first is again
        assert embeddings == [1]
        assert kind.identity(one) == kind.identity(replace(one, pixels=one.pixels.clone()))
        kind.release()
        kind.run([one])
        assert embeddings == [1, 1]

    @pytest.mark.parametrize(
        "change",
        [{"key": "other"}, {"tiling": True}, {"pixels": random_hint(64, 72)}, {"network": controlnet(key="other")}],
        ids=lambda change: next(iter(change)),
    )
    def test_others_are_not_the_same(self, guides: Mapping[str, Guide], change: Mapping[str, object]) -> None:
        kind, one = HintKind(), HintWork(guides["a"], "hint", random_hint(64, 64))
        assert kind.identity(one) != kind.identity(replace(one, **change))
        assert kind.run([one])[0].key != kind.run([replace(one, **change)])[0].key

    def test_a_network_of_one_channel_sees_gray(self) -> None:
        gray = t2i_adapter(channels=1)
        hint = random_hint(64, 64)
        (ours,) = HintKind().run([HintWork(gray, "hint", hint)])
        for value, expected in zip(ours.values, gray(hint.mean(dim=1, keepdim=True)), strict=True):
            torch.testing.assert_close(value, expected)
