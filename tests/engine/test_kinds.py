"""Each kind of work on small networks: what shares a forward, what is computed once, and what it needs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.engine.kinds import kinds_of
from sd_core.engine.kinds.kind import Degraded
from sd_core.engine.kinds.rows import rows_of
from sd_core.engine.kinds.text import TextKind
from sd_core.engine.kinds.unet import UNetKind, shared_lengths
from sd_core.engine.kinds.upscale import UpscaleKind
from sd_core.engine.kinds.vae import DecodeKind, EncodeKind
from sd_core.engine.memory import Memory
from sd_core.engine.pool import Pool
from sd_core.engine.runner import Runner
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.rrdbnet import RRDBNet, RRDBNetConfig
from sd_core.models.unet import UNet
from sd_core.models.vae import TILE, VAE
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Context, DecodeWork, Embedding, EncodeWork, Extras, TextWork, UNetWork, UpscaleWork
from tests.support.memory import KINDS, cpu_peak, peak_and_counted
from tests.support.upscalers import SMALL, random_weights

CPU = torch.device("cpu")


@pytest.fixture
def pool(tiny_model: StableDiffusion) -> Pool:
    return Pool([tiny_model])


def counted(monkeypatch: pytest.MonkeyPatch, network: type[Any], method: str) -> list[int]:
    """How many rows each call of a network's method had."""
    rows: list[int] = []
    call = getattr(network, method)

    def counting(self: Any, x: Tensor, *rest: Any, **named: Any) -> Any:
        rows.append(len(x))
        return call(self, x, *rest, **named)

    monkeypatch.setattr(network, method, counting)
    return rows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestUNet:
    @pytest.fixture
    def kind(self, pool: Pool) -> UNetKind:
        return UNetKind(pool, max_batch=4)

    def context(self, model: StableDiffusion, seed: int, tokens: int = 7) -> Context:
        return Context((seed, tokens), normal(1, tokens, model.networks.unet.config.context_dim, seed=seed))

    def work(self, model: StableDiffusion, seed: int, contexts: tuple[int, ...], side: int = 8) -> UNetWork:
        """One image seen with so many prompts."""
        return UNetWork(
            model.unet_key,
            normal(1, 4, side, side, seed=seed),
            100.0 + seed,
            tuple(self.context(model, each) for each in contexts),
            (0,) * len(contexts),
        )

    def alone(self, model: StableDiffusion, work: UNetWork) -> Tensor:
        """The network's own answer to each row, one after another."""
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
    def test_prompts_that_alternate_at_every_step_are_read_once_each(
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
    def test_rows_run_one_by_one_if_memory_does_not_hold_them(
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
        answers, held = Runner(Memory(CPU), [kind]).run(kind, works)
        assert not held
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
        expected = [kind.run([row.alone()])[0] for row in rows_of(works)]
        rows = [row for answer in kind.run(works)[:3] for row in answer.split(1)]
        output, deep = kind.run(works)[3]
        rows += zip(output.split(1), deep.split(1), strict=True)
        for row, own in zip(rows, expected, strict=True):
            torch.testing.assert_close(row, own, rtol=1e-4, atol=1e-4)
        shallow = [replace(kept, keeps_deep=False, deep=deep), replace(kept, keeps_deep=False, deep=2 * deep)]
        for answer, work in zip(kind.run(shallow), shallow, strict=True):
            torch.testing.assert_close(answer, kind.run_in_parts(work), rtol=1e-4, atol=1e-4)

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


class TestUpscale:
    @torch.inference_mode()
    def test_tiles_of_one_network_and_shape_share_a_forward(self) -> None:
        kind = UpscaleKind()
        network, other = RRDBNet(SMALL), RRDBNet(SMALL)
        network.load_state_dict(random_weights())
        works = [UpscaleWork(network, torch.rand(1, 3, 8, 6)) for _ in range(3)]
        for answer, work in zip(kind.run(works), works, strict=True):
            torch.testing.assert_close(answer, network(work.pixels), rtol=1e-4, atol=1e-5)
        others = [UpscaleWork(other, works[0].pixels), UpscaleWork(network, torch.rand(1, 3, 6, 8))]
        assert len({kind.key(work) for work in (*works, *others)}) == 3
        assert kind.cost(works[0]) == 48 and kind.capacity == 192**2
        assert kind.smallest(works[0]) is None

    @torch.inference_mode()
    def test_a_forward_holds_no_more_than_is_counted(self) -> None:
        kind, network = UpscaleKind(), RRDBNet(RRDBNetConfig(features=32, growth=16, blocks=2))
        work = UpscaleWork(network, torch.rand(1, 3, 40, 40))
        peak = cpu_peak(lambda: kind.run([work]))
        assert 0.2 * kind.bytes(work) < peak < kind.bytes(work)


class TestText:
    @pytest.fixture
    def kind(self, pool: Pool) -> TextKind:
        return TextKind(pool)

    def work(self, model: StableDiffusion, *prompts: str) -> TextWork:
        return TextWork(model.text_key, tuple(model.tokenizer.encode(prompt, 77).ids for prompt in prompts))

    @torch.inference_mode()
    def test_prompts_of_several_jobs_share_a_forward_and_none_is_encoded_twice(
        self, tiny_model: StableDiffusion, kind: TextKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forwards = counted(monkeypatch, CLIPTextEncoder, "forward")
        first, second = self.work(tiny_model, "a cat", ""), self.work(tiny_model, "a dog", "")
        (cat, nothing), (dog, also_nothing) = kind.run([first, second])
        assert forwards == [3]
        assert nothing == also_nothing and len({cat.key, dog.key, nothing.key}) == 3
        assert kind.run([self.work(tiny_model, "a dog", "a cow")])[0][0] == dog
        assert forwards == [3, 1]
        ids = torch.tensor(first.prompts[:1])
        torch.testing.assert_close(cat.states, tiny_model.networks.text_encoder(ids))

    @torch.inference_mode()
    def test_the_layer_to_stop_at_is_part_of_a_context(self, tiny_model: StableDiffusion, kind: TextKind) -> None:
        work = self.work(tiny_model, "a cat")
        ((last,),), ((before,),) = kind.run([work]), kind.run([replace(work, skip=1)])
        assert last.key != before.key and not torch.equal(last.states, before.states)
        assert kind.key(work) != kind.key(replace(work, skip=1))

    @torch.inference_mode()
    def test_without_memory_prompts_are_encoded_one_by_one(
        self, tiny_model: StableDiffusion, kind: TextKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward, rows = CLIPTextEncoder.forward, list[int]()

        def small(self: CLIPTextEncoder, tokens: Tensor, *rest: Any) -> Tensor:
            rows.append(len(tokens))
            if len(tokens) > 1:
                raise MemoryError
            return forward(self, tokens, *rest)

        monkeypatch.setattr(CLIPTextEncoder, "forward", small)
        works = [self.work(tiny_model, "a cat", "a cow"), self.work(tiny_model, "a dog")]
        answers, held = Runner(Memory(CPU), [kind]).run(kind, works)
        assert not held and rows == [3, 2, 1, 1, 1]
        assert [len(contexts) for contexts in answers] == [2, 1]

    @torch.inference_mode()
    def test_an_embeddings_vectors_stand_in_place_of_tokens(
        self, tiny_model: StableDiffusion, kind: TextKind, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The vectors of the tokens themselves change nothing, and equal content is encoded once."""
        encoder = tiny_model.networks.text_encoder
        (plain,) = self.work(tiny_model, "a cat").prompts
        own = encoder.text_model.embeddings.token_embedding(torch.tensor(plain[1:3])).clone()

        def vectors(sha256: str, values: Tensor) -> TextWork:
            tokens = Embedding(("x",), sha256, values).tokens
            return TextWork(tiny_model.text_key, ((plain[0], *tokens, *plain[3:]), plain))

        forwards = counted(monkeypatch, CLIPTextEncoder, "forward")
        ((same, cat),) = kind.run([vectors("one", own)])
        torch.testing.assert_close(same.states, cat.states)
        torch.testing.assert_close(cat.states, encoder(torch.tensor([plain])))
        ((other, _),) = kind.run([vectors("two", normal(2, own.shape[1]))])
        assert not torch.allclose(other.states, cat.states, atol=1e-3)
        ((again, _),) = kind.run([vectors("one", own.clone())])
        assert again.states is same.states and again.key == same.key != other.key
        assert forwards[0] == 2 and forwards[2:] == [1]

    def test_equal_prompts_are_the_same_work(self, tiny_model: StableDiffusion, kind: TextKind) -> None:
        assert kind.identity(self.work(tiny_model, "a", "b")) == kind.identity(self.work(tiny_model, "a", "b"))
        assert kind.bytes(self.work(tiny_model, "a", "b")) == 2 * kind.bytes(self.work(tiny_model, "a")) > 0


class TestVAE:
    @torch.inference_mode()
    def test_latents_of_one_shape_are_decoded_together(
        self, tiny_model: StableDiffusion, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        works = [DecodeWork(tiny_model.vae_key, normal(1, 4, 3, 5, seed=seed)) for seed in range(2)]
        expected = [tiny_model.networks.vae.decode(work.latents) for work in works]
        forwards = counted(monkeypatch, VAE, "decode")
        kind = DecodeKind(pool)
        for answer, pixels in zip(kind.run(works), expected, strict=True):
            torch.testing.assert_close(answer, pixels, rtol=1e-4, atol=1e-4)
        assert forwards == [2] and kind.key(works[0]) == kind.key(works[1])
        assert kind.key(works[0]) != kind.key(replace(works[0], network="another VAE"))

    @torch.inference_mode()
    def test_an_image_is_encoded_once_and_alone(
        self, tiny_model: StableDiffusion, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind = EncodeKind(pool)
        forwards = counted(monkeypatch, VAE, "moments")
        works = [EncodeWork(tiny_model.vae_key, "one", normal(1, 3, 24, 40)) for _ in range(3)]
        answers, _ = Runner(Memory(CPU), [kind]).run(kind, works)
        assert forwards == [1] and all(answer is answers[0] for answer in answers)
        assert kind.key(works[0]) != kind.key(replace(works[0], key="other"))
        mean, logvar = answers[0]
        assert mean.shape == logvar.shape == (1, 4, 3, 5)

    @torch.inference_mode()
    def test_a_large_image_is_done_in_tiles_without_memory(self, tiny_model: StableDiffusion, pool: Pool) -> None:
        large, small = normal(1, 4, TILE + 1, 8), normal(1, 4, TILE, 8)
        decode, encode = DecodeKind(pool), EncodeKind(pool)
        assert decode.smallest(DecodeWork(tiny_model.vae_key, small)) is None, "one tile is no less than the whole"
        part = decode.smallest(DecodeWork(tiny_model.vae_key, large))
        assert part is not None and part.latents.shape == (1, 4, TILE, 8)
        answer = decode.run_in_parts(DecodeWork(tiny_model.vae_key, large))
        assert isinstance(answer, Degraded) and "decode" in answer.warning
        assert answer.answer.shape == (1, 3, 8 * (TILE + 1), 64)
        work = EncodeWork(tiny_model.vae_key, "large", normal(1, 3, 8 * (TILE + 1), 64))
        answer = encode.run_in_parts(work)
        assert encode.smallest(work) is not None and "encode" in answer.warning
        assert [each.shape for each in answer.answer] == [(1, 4, TILE + 1, 8)] * 2


@pytest.mark.parametrize("forward", KINDS)
@pytest.mark.parametrize("side", [16, 24])
def test_a_forward_holds_no_more_than_is_counted(tiny_model: StableDiffusion, forward: str, side: int) -> None:
    measured = peak_and_counted(tiny_model, forward, side)
    assert 0.2 * measured["counted_mb"] < measured["peak_mb"] < measured["counted_mb"]


def test_every_kind_of_work_is_registered(pool: Pool) -> None:
    assert kinds_of(pool, 4).keys() == {TextWork, EncodeWork, UNetWork, DecodeWork, UpscaleWork}
