"""Steps of many images in one forward: their prompts, sizes and extras."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.engine.kinds.rows import rows_of
from sd_core.engine.kinds.unet import UNetKind, shared_lengths
from sd_core.engine.memory import Memory
from sd_core.engine.pool import Pool
from sd_core.engine.runner import Runner
from sd_core.models.unet import UNet
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Context, Extras, UNetWork
from tests.support.counting import counted, normal

CPU = torch.device("cpu")


@pytest.fixture
def pool(tiny_model: StableDiffusion) -> Pool:
    return Pool([tiny_model])


class TestUNet:
    @pytest.fixture
    def kind(self, pool: Pool) -> UNetKind:
        return UNetKind(pool, max_batch=4)

    def context(self, model: StableDiffusion, seed: int, tokens: int = 7) -> Context:
        return Context((seed, tokens), normal(1, tokens, model.networks.unet.config.context_dim, seed=seed))

    def work(self, model: StableDiffusion, seed: int, contexts: tuple[int, ...], side: int = 8) -> UNetWork:
        """The work of one image with these prompts."""
        return UNetWork(
            model.unet_key,
            normal(1, 4, side, side, seed=seed),
            100.0 + seed,
            tuple(self.context(model, each) for each in contexts),
            (0,) * len(contexts),
        )

    def alone(self, model: StableDiffusion, work: UNetWork) -> Tensor:
        """The network's output for each row, computed one by one."""
        rows = []
        for image, context in zip(work.image_of_row, work.contexts, strict=True):
            given = model.networks.unet.given(context.states)
            latents = work.latents[image : image + 1]
            rows.append(model.networks.unet(latents, torch.tensor([work.timestep]), given))
        return torch.cat(rows)

    @torch.inference_mode()
    def test_images_with_different_prompts_and_timesteps_share_a_forward(
        self, tiny_model: StableDiffusion, kind: UNetKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works = [self.work(tiny_model, 1, (1, 2)), self.work(tiny_model, 2, (3,)), self.work(tiny_model, 3, (1, 3))]
        expected = [self.alone(tiny_model, work) for work in works]
        forwards = counted(monkeypatch, UNet, "forward")
        for answer, rows in zip(kind.run(works), expected, strict=True):
            torch.testing.assert_close(answer, rows, rtol=1e-4, atol=1e-4)
        assert forwards == [3], "rows of one image are computed once until they read their prompts"

    @torch.inference_mode()
    def test_rows_of_one_image_may_differ_from_the_start(self, tiny_model: StableDiffusion, kind: UNetKind) -> None:
        one = self.work(tiny_model, 1, (1, 2, 3))
        many = replace(one, latents=normal(2, 4, 8, 8, seed=9), image_of_row=(1, 0, 1))
        for answer, work in zip(kind.run([many, one]), (many, one), strict=True):
            torch.testing.assert_close(answer, self.alone(tiny_model, work), rtol=1e-4, atol=1e-4)

    @torch.inference_mode()
    def test_keys_and_values_of_prompts_that_alternate_at_every_step_are_computed_once_each(
        self, tiny_model: StableDiffusion, kind: UNetKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads = counted(monkeypatch, UNet, "read")
        for step in range(6):
            kind.run([self.work(tiny_model, step, (1 + step % 2, 3))])
        assert reads == [2, 1]
        kind.run([self.work(tiny_model, 1, (1,)), self.work(tiny_model, 2, (2, 4)), self.work(tiny_model, 3, (4,))])
        assert reads == [2, 1, 1]
        kind.release()
        kind.run([self.work(tiny_model, 1, (1,))])
        assert reads == [2, 1, 1, 1]

    def test_only_latents_of_one_shape_share_a_forward_whatever_their_prompts(
        self, tiny_model: StableDiffusion, kind: UNetKind
    ) -> None:
        work = self.work(tiny_model, 1, (1,))
        longer = replace(work, contexts=(self.context(tiny_model, 1, tokens=9),))
        others = [self.work(tiny_model, 1, (1,), side=12), replace(work, network="other")]
        assert kind.key(work) == kind.key(self.work(tiny_model, 2, (2, 3))) == kind.key(longer)
        assert len({kind.key(each) for each in (work, *others)}) == 3

    @torch.inference_mode()
    @pytest.mark.parametrize(
        ("lengths", "forwards"),
        [
            ((7, 14, 7), [3]),
            ((21, 7, 14), [3]),
            ((14, 21, 28), [3]),
            ((28, 7, 35), [3]),
            ((35, 42, 7), [2, 1]),
            ((7, 7 * 200), [1, 1]),
        ],
        ids=str,
    )
    def test_prompts_of_different_lengths_give_what_each_gives_alone(
        self,
        tiny_model: StableDiffusion,
        kind: UNetKind,
        monkeypatch: pytest.MonkeyPatch,
        lengths: tuple[int, ...],
        forwards: list[int],
    ) -> None:
        """Repeated contexts change nothing, and lengths without a short common multiple run apart."""
        contexts = [self.context(tiny_model, seed, tokens) for seed, tokens in enumerate(lengths)]
        first = replace(self.work(tiny_model, 1, (1, 2)), contexts=tuple(contexts[:2]))
        works = [first] + [replace(self.work(tiny_model, 2, (1,)), contexts=(each,)) for each in contexts[2:]]
        expected = [self.alone(tiny_model, work) for work in works]
        rows: list[int] = []
        forward = UNet.forward

        def counting(self: UNet, x: Tensor, timesteps: Tensor, given: Any) -> Tensor:
            rows.append(len(next(iter(given.keys_values.values()))[0]))
            return forward(self, x, timesteps, given)

        monkeypatch.setattr(UNet, "forward", counting)
        for answer, alone in zip(kind.run(works), expected, strict=True):
            torch.testing.assert_close(answer, alone, rtol=1e-4, atol=1e-4)
        assert rows == forwards

    @pytest.mark.parametrize(
        ("lengths", "groups"),
        [
            ([77], [(77, [77])]),
            ([77, 154, 77], [(154, [154, 77])]),
            ([77, 154, 231], [(462, [231, 154, 77])]),
            ([231, 308], [(924, [308, 231])]),
            ([385, 462], [(462, [462]), (385, [385])]),
            ([385, 462, 77], [(462, [462, 77]), (385, [385])]),
            ([77 * 16, 77], [(77 * 16, [77 * 16, 77])]),
            ([77 * 17, 77], [(77 * 17, [77 * 17]), (77, [77])]),
        ],
        ids=str,
    )
    def test_contexts_are_repeated_up_to_four_times_the_longest(
        self, lengths: list[int], groups: list[tuple[int, list[int]]]
    ) -> None:
        assert shared_lengths(lengths) == groups

    def test_long_prompts_count_for_the_keys_and_values_that_they_hold(
        self, tiny_model: StableDiffusion, kind: UNetKind
    ) -> None:
        work = self.work(tiny_model, 1, (1,))
        short, long = (
            replace(work, contexts=(self.context(tiny_model, 1, tokens=tokens),)) for tokens in (77, 77 + 10)
        )
        read = tiny_model.networks.unet.read(long.contexts[0].states)
        held = sum(each.nbytes for pair in read.values() for each in pair) * 10 // 87
        assert kind.bytes(long) - kind.bytes(short) == 2 * held > 0

    def test_room_and_memory_grow_with_rows_and_pixels(self, tiny_model: StableDiffusion, kind: UNetKind) -> None:
        native = tiny_model.info.native_size // 8
        assert kind.capacity == 8
        assert kind.cost(self.work(tiny_model, 1, (1, 2), native)) == 2
        assert kind.cost(self.work(tiny_model, 1, (1,), native // 2)) == 1
        assert kind.cost(self.work(tiny_model, 1, (1, 2), 2 * native)) == 8
        one, four = self.work(tiny_model, 1, (1,), 8), self.work(tiny_model, 1, (1, 2), 16)
        assert kind.bytes(four) == 8 * kind.bytes(one) > 0

    @torch.inference_mode()
    def test_rows_run_one_by_one_if_memory_is_short(
        self, tiny_model: StableDiffusion, kind: UNetKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward = UNet.forward

        def small(self: UNet, x: Tensor, timesteps: Tensor, given: Any) -> Tensor:
            if len(next(iter(given.keys_values.values()))[0]) > 1:
                raise MemoryError
            return forward(self, x, timesteps, given)

        works = [self.work(tiny_model, 1, (1, 2)), self.work(tiny_model, 2, (3,))]
        expected = [self.alone(tiny_model, work) for work in works]
        monkeypatch.setattr(UNet, "forward", small)
        answers, fits = Runner(Memory(CPU), [kind]).run(kind, works)
        assert not fits
        for answer, rows in zip(answers, expected, strict=True):
            torch.testing.assert_close(answer, rows, rtol=1e-4, atol=1e-4)

    @torch.inference_mode()
    def test_works_with_and_without_extras_share_a_forward(
        self, tiny_model: StableDiffusion, kind: UNetKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = [self.work(tiny_model, 1, (1, 2), 32), self.work(tiny_model, 2, (3,), 32)]
        freeu = replace(plain[0], extras=Extras(freeu=(1.5, 1.6, 0.9, 0.2)))
        perturbed = replace(plain[0], perturbed=(1,))
        works = [plain[1], freeu, perturbed, replace(plain[1], keeps_deep=True), plain[0]]
        alone = [kind.run([work])[0] for work in works]
        whole = counted(monkeypatch, UNet, "whole")
        together = kind.run(works)
        assert whole == [5]
        for answer, own in zip(together, alone, strict=True):
            torch.testing.assert_close(answer, own, rtol=1e-4, atol=1e-4)
        outputs, uncond = alone[2], alone[4]
        torch.testing.assert_close(outputs[0], uncond[0], rtol=1e-4, atol=1e-4)
        assert (outputs[1] - uncond[1]).abs().max() > 1e-3, "only the row that is named is perturbed"
        assert (alone[1] - uncond).abs().max() > 1e-2

    @torch.inference_mode()
    def test_kept_features_answer_later_works_together(
        self, tiny_model: StableDiffusion, kind: UNetKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works = [replace(self.work(tiny_model, seed, (1, 2)), keeps_deep=True) for seed in (1, 2)]
        answers = kind.run(works)
        assert [[each.shape[0] for each in answer] for answer in answers] == [[2, 2], [2, 2]]
        unet = tiny_model.networks.unet
        assert answers[0][1].untyped_storage().nbytes() == answers[0][1].nbytes, "no view of all rows' features"
        shallow = [replace(work, keeps_deep=False, deep=deep) for work, (_, deep) in zip(works, answers, strict=True)]
        assert kind.key(shallow[0]) == kind.key(shallow[1]) != kind.key(works[0])
        outermost = counted(monkeypatch, UNet, "outermost")
        for output, (own, _) in zip(kind.run(shallow), answers, strict=True):
            torch.testing.assert_close(output, own, rtol=1e-4, atol=1e-5)
        assert outermost == [2]
        assert kind.bytes(works[0]) > kind.bytes(self.work(tiny_model, 1, (1, 2)))
        assert unet.dtype == torch.float32

    @torch.inference_mode()
    @pytest.mark.parametrize("tokens", [(7, 14), (7, 1300)], ids=["together", "apart"])
    def test_extras_and_prompts_of_different_lengths_go_together(
        self, tiny_model: StableDiffusion, kind: UNetKind, tokens: tuple[int, int]
    ) -> None:
        short, long = (self.context(tiny_model, seed, length) for seed, length in enumerate(tokens))
        plain = replace(self.work(tiny_model, 1, (1, 2)), contexts=(short, long))
        freeu = replace(self.work(tiny_model, 2, (1,)), contexts=(long,), extras=Extras(freeu=(1.5, 1.6, 0.9, 0.2)))
        kept = replace(self.work(tiny_model, 3, (1, 2)), contexts=(long, short), keeps_deep=True)
        works = [plain, replace(plain, perturbed=(1,)), freeu, kept]
        assert len({kind.key(work) for work in works}) == 1
        expected: list[Any] = [kind.run([row.alone()])[0] for row in rows_of(works)]
        rows = [row for answer in kind.run(works)[:3] for row in answer.split(1)]
        output, deep = kind.run(works)[3]
        rows += zip(output.split(1), deep.split(1), strict=True)
        for row, own in zip(rows, expected, strict=True):
            torch.testing.assert_close(row, own, rtol=1e-4, atol=1e-4)
        shallow = [replace(kept, keeps_deep=False, deep=deep), replace(kept, keeps_deep=False, deep=2 * deep)]
        for answer, work in zip(kind.run(shallow), shallow, strict=True):
            rows_alone: list[Any] = [kind.run([row.alone()])[0] for row in rows_of([work])]
            alone = torch.cat(rows_alone)
            torch.testing.assert_close(answer, alone, rtol=1e-4, atol=1e-4)

    @torch.inference_mode()
    def test_extras_survive_running_row_by_row(self, tiny_model: StableDiffusion, kind: UNetKind) -> None:
        work = self.work(tiny_model, 1, (1, 2), 32)
        kept = replace(work, keeps_deep=True, perturbed=(1,), extras=Extras(freeu=(1.2, 1.4, 0.9, 0.2)))
        expected = kind.run([kept])[0]
        for answer, own in zip(kind.run_in_parts(kept), expected, strict=True):
            torch.testing.assert_close(answer, own, rtol=1e-4, atol=1e-4)
        shallow = replace(kept, keeps_deep=False, deep=expected[1])
        torch.testing.assert_close(kind.run_in_parts(shallow), kind.run([shallow])[0], rtol=1e-4, atol=1e-4)

    @torch.inference_mode()
    @pytest.mark.parametrize("extras", [Extras(tiling=True), Extras(tome_ratio=0.5)], ids=["tiling", "tome"])
    def test_what_all_rows_must_share_has_a_batch_of_its_own(
        self, tiny_model: StableDiffusion, kind: UNetKind, extras: Extras
    ) -> None:
        plain = self.work(tiny_model, 1, (1, 2), 16)
        work = replace(plain, extras=extras)
        assert kind.key(work) != kind.key(plain) and kind.key(work) == kind.key(replace(work, perturbed=(1,)))
        unet, expected = tiny_model.networks.unet, kind.run([plain])[0]
        output = kind.run([work])[0]
        assert (output - expected).abs().max() > 1e-3
        rolled = kind.run([replace(work, latents=work.latents.roll((8, 8), (2, 3)))])[0]
        same = torch.allclose(rolled, output.roll((8, 8), (2, 3)), atol=1e-3)
        assert same or not extras.tiling
        assert torch.equal(kind.run([plain])[0], expected), "the plain forward is given nothing of it"
        assert unet.finest_attentions
