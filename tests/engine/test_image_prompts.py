"""Images that act as prompts: encoded once, and read by the rows that have them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sd_core.engine.kinds.image_prompt import ImageKind
from sd_core.engine.kinds.rows import rows_of
from sd_core.engine.kinds.unet import UNetKind
from sd_core.engine.memory import Memory
from sd_core.engine.pool import Pool
from sd_core.engine.runner import Runner
from sd_core.models.image_encoder import ImageEncoder
from sd_core.models.ip_adapter import ImageTokenizer, IPAdapter
from sd_core.pipeline.model import StableDiffusion
from sd_core.work import Attachments, Context, Extras, ImagePrompt, ImageWork, UNetWork
from tests.support.counting import counted, normal
from tests.support.ip_adapters import ADAPTERS, ENCODER, random_network

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, ImageTokenizer]:
    encoder = random_network(ImageEncoder(ENCODER, "encoder"))
    return {name: ImageTokenizer(encoder, random_network(IPAdapter(config, name))) for name, config in ADAPTERS.items()}


class TestEncoding:
    def work(self, tokenizer: ImageTokenizer, seed: int | None) -> ImageWork:
        return ImageWork(tokenizer, seed, None if seed is None else normal(1, 3, 32, 32, seed=seed))

    @torch.inference_mode()
    def test_images_share_a_forward_and_are_kept(
        self, tokenizers: dict[str, ImageTokenizer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind, plus = ImageKind(), tokenizers["plus"]
        works = [self.work(plus, seed) for seed in (1, 2, None)]
        assert len({kind.key(work) for work in works}) == 1 and len({kind.identity(work) for work in works}) == 3
        assert kind.key(works[0]) != kind.key(self.work(tokenizers["base"], 1))
        expected = [plus.tokens(normal(1, 3, 32, 32, seed=1)), plus.tokens(normal(1, 3, 32, 32, seed=2))]
        expected.append(plus.tokens(torch.zeros(1, 3, 32, 32)))
        encoded = counted(monkeypatch, ImageEncoder, "hidden")
        answers = kind.run(works)
        assert encoded == [2, 1]
        for answer, own in zip(answers, expected, strict=True):
            torch.testing.assert_close(answer.states, own, **CLOSE)
            assert answer.states.untyped_storage().nbytes() == answer.states.nbytes, "no view of the whole batch"
        assert len({answer.key for answer in answers}) == 3
        again = kind.run([works[1], self.work(plus, 3)])
        assert encoded == [2, 1, 1] and again[0] is answers[1]
        kind.release()
        kind.run(works[:1])
        assert encoded == [2, 1, 1, 1]

    def test_no_image_is_a_zero_embedding_for_the_base_adapter(self, tokenizers: dict[str, ImageTokenizer]) -> None:
        base = tokenizers["base"]
        torch.testing.assert_close(base.no_tokens(), base.adapter(torch.zeros(1, ENCODER.embedding)))
        assert not torch.allclose(base.no_tokens(), base.tokens(torch.zeros(1, 3, 32, 32)), atol=1e-2)

    @torch.inference_mode()
    def test_a_batch_without_memory_is_halved(
        self, tokenizers: dict[str, ImageTokenizer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind = ImageKind()
        works = [self.work(tokenizers["full"], seed) for seed in range(4)]
        expected = [context.states for context in kind.run(works)]
        kind.release()
        hidden = ImageEncoder.hidden

        def small(self: ImageEncoder, pixels: Tensor) -> Tensor:
            if len(pixels) > 1:
                raise MemoryError
            return hidden(self, pixels)

        monkeypatch.setattr(ImageEncoder, "hidden", small)
        answers, fits = Runner(Memory(torch.device("cpu")), [kind]).run(kind, works)
        assert not fits
        for answer, own in zip(answers, expected, strict=True):
            torch.testing.assert_close(answer.states, own, **CLOSE)


class TestReading:
    @pytest.fixture
    def kind(self, tiny_model: StableDiffusion) -> UNetKind:
        return UNetKind(Pool([tiny_model]), max_batch=8)

    def prompt(
        self, tokenizers: dict[str, ImageTokenizer], name: str, seed: int, weight: float = 0.7, rows: Any = None
    ) -> ImagePrompt:
        tokens = tokenizers[name].tokens(normal(1, 3, 32, 32, seed=seed))
        return ImagePrompt(tokenizers[name].adapter, Context((name, seed), tokens), weight, rows)

    def work(self, model: StableDiffusion, seed: int, rows: int, *images: ImagePrompt) -> UNetWork:
        width = model.networks.unet.config.context_dim
        contexts = tuple(Context(row, normal(1, 7, width, seed=row)) for row in range(rows))
        latents = normal(1, 4, 8, 8, seed=seed)
        attached = Attachments(image_prompts=images)
        return UNetWork(model.unet_key, latents, 100.0 + seed, contexts, (0,) * rows, attached=attached)

    @torch.inference_mode()
    def test_rows_with_and_without_images_share_a_forward(
        self, tiny_model: StableDiffusion, tokenizers: dict[str, ImageTokenizer], kind: UNetKind
    ) -> None:
        base, plus = self.prompt(tokenizers, "base", 1), self.prompt(tokenizers, "plus", 2, 1.1)
        guided = (replace(self.prompt(tokenizers, "base", 3), rows=(0,)), replace(base, rows=(1,)))
        works = [
            self.work(tiny_model, 1, 2),
            self.work(tiny_model, 2, 2, *guided),
            self.work(tiny_model, 3, 1, base, plus),
            self.work(tiny_model, 4, 2, base, self.prompt(tokenizers, "base", 5, 0.3)),
            replace(self.work(tiny_model, 5, 2, plus), extras=Extras(freeu=(1.2, 1.3, 0.9, 0.4)), perturbed=(1,)),
        ]
        assert len({kind.key(work) for work in works}) == 1
        alone = [kind.run([row.alone()])[0] for work in works for row in rows_of([work])]
        together = [row for answer in kind.run(works) for row in answer.split(1)]
        for own, answer in zip(alone, together, strict=True):
            torch.testing.assert_close(answer, own, **CLOSE)
        for index, work in enumerate(works[1:], 1):
            without = kind.run([replace(work, attached=Attachments())])[0]
            changes = (torch.cat(together).split([2, 2, 1, 2, 2])[index] - without).abs().amax(dim=(1, 2, 3))
            assert all(changes > 1e-2), index

    @torch.inference_mode()
    def test_an_image_is_read_once_and_stacked_once(
        self,
        tiny_model: StableDiffusion,
        tokenizers: dict[str, ImageTokenizer],
        kind: UNetKind,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        reads = counted(monkeypatch, IPAdapter, "read")
        images = [self.prompt(tokenizers, "plus", seed) for seed in (1, 2)]
        for step in range(3):
            kind.run([self.work(tiny_model, step, 2, images[0]), self.work(tiny_model, step, 1, images[step % 2])])
        assert reads == [1, 1]
        weaker = kind.run([self.work(tiny_model, 1, 1, replace(images[0], weight=0.2))])[0]
        assert reads == [1, 1]
        assert (weaker - kind.run([self.work(tiny_model, 1, 1, images[0])])[0]).abs().max() > 1e-3
        kind.release()
        kind.run([self.work(tiny_model, 1, 1, images[0])])
        assert reads == [1, 1, 1]

    @torch.inference_mode()
    def test_images_survive_running_row_by_row_and_from_deep_features(
        self, tiny_model: StableDiffusion, tokenizers: dict[str, ImageTokenizer], kind: UNetKind
    ) -> None:
        images = self.prompt(tokenizers, "base", 1, rows=(0,)), self.prompt(tokenizers, "plus", 2, rows=(1,))
        kept = replace(self.work(tiny_model, 1, 2, *images), keeps_deep=True)
        output, deep = kind.run([kept])[0]
        for answer, own in zip(kind.run_in_parts(kept), (output, deep), strict=True):
            torch.testing.assert_close(answer, own, **CLOSE)
        shallow = replace(kept, keeps_deep=False, deep=deep)
        torch.testing.assert_close(kind.run([shallow])[0], output, **CLOSE)

    def test_what_is_read_of_images_counts_as_memory(
        self, tiny_model: StableDiffusion, tokenizers: dict[str, ImageTokenizer], kind: UNetKind
    ) -> None:
        image = self.prompt(tokenizers, "full", 1)
        plain, with_image = self.work(tiny_model, 1, 2), self.work(tiny_model, 1, 2, image)
        one_row = self.work(tiny_model, 1, 2, replace(image, rows=(1,)))
        held = sum(each.nbytes for pair in self.read(image) for each in pair)
        assert kind.bytes(with_image) - kind.bytes(plain) == 2 * 2 * held
        assert kind.bytes(one_row) - kind.bytes(plain) == 2 * held

    def read(self, image: ImagePrompt) -> list[Any]:
        names = [str(index) for index in range(len(ADAPTERS["full"].attentions))]
        return list(image.adapter.read(image.tokens.states, names).values())
