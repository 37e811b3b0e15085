"""Each kind of work on small networks: what shares a forward, what is computed once, and what it needs."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from sd_core.engine.kinds import kinds_of
from sd_core.engine.kinds.kind import Degraded
from sd_core.engine.kinds.text import TextKind
from sd_core.engine.kinds.upscale import UpscaleKind
from sd_core.engine.kinds.vae import DecodeKind, EncodeKind
from sd_core.engine.memory import Memory
from sd_core.engine.pool import Pool
from sd_core.engine.runner import Runner
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.rrdbnet import RRDBNet, RRDBNetConfig
from sd_core.models.vae import TILE, VAE
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import DecodeWork, Embedding, EncodeWork, TextWork, UpscaleWork, Work
from tests.support.counting import counted, normal
from tests.support.memory import KINDS, cpu_peak, peak_and_counted
from tests.support.upscalers import SMALL, random_weights

CPU = torch.device("cpu")


@pytest.fixture
def pool(tiny_model: StableDiffusion) -> Pool:
    return Pool([tiny_model])


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
    def test_a_context_depends_on_the_layer_to_stop_at(self, tiny_model: StableDiffusion, kind: TextKind) -> None:
        work = self.work(tiny_model, "a cat")
        ((last,),), ((before,),) = kind.run([work]), kind.run([replace(work, skip=1)])
        assert last.key != before.key and not torch.equal(last.states, before.states)
        assert kind.key(work) != kind.key(replace(work, skip=1))

    @torch.inference_mode()
    def test_prompts_are_encoded_one_by_one_if_memory_is_short(
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
        answers, fits = Runner(Memory(CPU), [kind]).run(kind, works)
        assert not fits and rows == [3, 2, 1, 1, 1]
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
    def test_a_large_image_is_done_in_tiles_if_memory_is_short(self, tiny_model: StableDiffusion, pool: Pool) -> None:
        large, small = normal(1, 4, TILE + 1, 8), normal(1, 4, TILE, 8)
        decode, encode = DecodeKind(pool), EncodeKind(pool)
        assert decode.smallest(DecodeWork(tiny_model.vae_key, small)) is None, "one tile is not smaller than the whole"
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
def test_a_forward_takes_at_most_the_counted_memory(tiny_model: StableDiffusion, forward: str, side: int) -> None:
    measured = peak_and_counted(tiny_model, forward, side)
    assert 0.2 * measured["counted_mb"] < measured["peak_mb"] < measured["counted_mb"]


def test_every_kind_of_work_is_registered(pool: Pool) -> None:
    assert kinds_of(pool, 4).keys() == set(get_args(Work))
