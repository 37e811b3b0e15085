"""Prompts of every syntax and length in one engine: each image is what it is alone, and each prompt is read once."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_core.engine.engine import Engine
from sd_core.errors import InvalidRequest
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.work import Embedding

REQUEST = Request("a cat", seed=3, width=64, height=64, steps=4, sampler="euler", schedule="default")
REQUESTS = [
    REQUEST,
    replace(REQUEST, prompt="(a:1.4) [red:blue:0.5] cat AND a dog :0.5", negative_prompt="[x|y]"),
    replace(REQUEST, prompt="many words " * 20, sampler="heun"),  # three chunks of single bytes
    replace(REQUEST, prompt="a (cat:0.5) BREAK b", prompt_syntax="comfy", clip_skip=2, num_images=2),
    replace(REQUEST, prompt="a cat", negative_prompt="a BREAK b BREAK c BREAK d BREAK e", scale=3.0),
    replace(REQUEST, prompt="(many words) " * 20, prompt_syntax="plain"),
]


@pytest.fixture
def engine(tiny_model: StableDiffusion) -> Iterator[Engine]:
    vector = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    wide = Embedding(("zwide",), "wide", torch.zeros(1, 1024))
    model = tiny_model.with_embeddings([Embedding(("zstyle",), "style", vector), wide])
    engine = Engine([model], max_batch=8)
    yield engine
    engine.close()


def levels_apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_images_of_all_prompt_lengths_and_syntaxes_are_the_same_together_as_alone(engine: Engine) -> None:
    together = [future.result() for future in [engine.submit(request) for request in REQUESTS]]
    for request, result in zip(REQUESTS, together, strict=True):
        for image, alone in zip(result.images, engine.submit(request).result().images, strict=True):
            assert levels_apart(image, alone) <= 1
    firsts = [result.images[0] for result in together]
    assert all(levels_apart(firsts[0], other) > 5 for other in firsts[1:])


def test_an_embedding_changes_the_image_in_either_prompt(engine: Engine) -> None:
    plain, positive, negative, again = (
        engine.submit(replace(REQUEST, **fields)).result().images[0]
        for fields in (
            {"negative_prompt": "b"},
            {"prompt": "a cat zstyle", "negative_prompt": "b"},
            {"negative_prompt": "b, (zstyle:1.2)"},
            {"prompt": "a cat embedding:zstyle", "negative_prompt": "b", "prompt_syntax": "comfy"},
        )
    )
    assert levels_apart(plain, positive) > 5 and levels_apart(plain, negative) > 5
    assert np.array_equal(positive, again)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": "(" * 8_000 + "a"}, "prompt: a part of it has the weight"),
        ({"negative_prompt": "a zwide b"}, "negative_prompt: the embedding 'zwide'"),
        ({"prompt": "a AND " * 999}, "prompt: 1,000 prompts are joined"),
        ({"clip_skip": 12}, "clip_skip: 12 is more than"),
    ],
)
def test_a_prompt_that_is_refused_disturbs_no_neighbour(engine: Engine, fields: dict[str, Any], says: str) -> None:
    alone = engine.submit(REQUEST).result().images[0]
    neighbour, refused = engine.submit(REQUEST), engine.submit(replace(REQUEST, **fields))
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        refused.result()
    assert np.array_equal(neighbour.result().images[0], alone)


def test_alternating_prompts_are_encoded_and_read_once_each(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, read = list[int](), list[int]()
    forward, reading = CLIPTextEncoder.forward, UNet.read

    def counting(self: CLIPTextEncoder, tokens: Tensor, *rest: Any) -> Tensor:
        encoded.append(len(tokens))
        return forward(self, tokens, *rest)

    def counting_reads(self: UNet, states: Tensor, *rest: Any) -> Any:
        read.append(len(states))
        return reading(self, states, *rest)

    monkeypatch.setattr(CLIPTextEncoder, "forward", counting)
    monkeypatch.setattr(UNet, "read", counting_reads)
    request = replace(REQUEST, prompt="[cow|horse] in a field", negative_prompt="fog", steps=12, num_images=2)
    engine.submit(request).result()
    assert sum(encoded) == 3 and sum(read) == 3
