"""Embedding files and clip_skip beside diffusers and transformers, on the same tiny random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_core.formats.embedding import load_embedding
from sd_core.pipeline.conditioning import encoded
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prompts import read_prompts, reader_of
from sd_core.pipeline.sample import Run
from sd_core.work import Call, Context, TextWork, Vector
from tests.support.drive import drive
from tests.support.random_weights import TINY
from tests.support.reference import reference_pipeline

WIDTH = TINY.text.width
VECTORS = 0.01 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Any:
    return reference_pipeline(load_file(tiny_checkpoint), TINY, tiny_checkpoint.parent)


def ours(model: StableDiffusion, prompt: str, clip_skip: int = 1) -> Tensor:
    """The context (1, T, width) of a plain prompt."""
    run = Run("euler", "default", 5, 7.5)
    prompts = read_prompts(reader_of(model, "plain"), model, prompt, "", run, clip_skip)
    encoder = model.networks.text_encoder
    embed = encoder.text_model.embeddings.token_embedding

    def vector(token: int | Vector) -> Tensor:
        return token.values if isinstance(token, Vector) else embed(torch.tensor(token))

    def answer(work: TextWork) -> tuple[Context, ...]:
        inputs = torch.stack([torch.stack([vector(token) for token in prompt]) for prompt in work.prompts])
        return tuple(Context(0, each) for each in encoder(inputs, work.skip).split(1))

    with torch.inference_mode():
        conditioning, _ = drive(encoded(prompts, model), answer)
    ((context, _),) = conditioning.at(Call(torch.zeros(1), 1.0, 0)).positive
    return context.states


def theirs(pipe: Any, prompt: str) -> Tensor:
    with torch.inference_mode():
        states, _ = pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
    found: Tensor = states
    return found


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_layers_before_the_last_one(tiny_model: StableDiffusion, pipe: Any, clip_skip: int) -> None:
    """As AUTOMATIC1111 counts them, and normalized in any case."""
    ids = pipe.tokenizer("a cat", padding="max_length", return_tensors="pt").input_ids
    encoder = pipe.text_encoder
    with torch.inference_mode():
        states = encoder(ids, output_hidden_states=True).hidden_states[-clip_skip]
        (norm,) = [module for name, module in encoder.named_modules() if name.endswith("final_layer_norm")]
        expected = norm(states)
    torch.testing.assert_close(ours(tiny_model, "a cat", clip_skip), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["a1111", "diffusers", "safetensors"])
def test_embedding_files(tiny_checkpoint: Path, tiny_model: StableDiffusion, tmp_path: Path, layout: str) -> None:
    path = tmp_path / ("zstyle.safetensors" if layout == "safetensors" else "zstyle.bin")
    if layout == "safetensors":
        save_file({"zstyle": VECTORS}, path)
    else:
        torch.save(
            {"zstyle": VECTORS} if layout == "diffusers" else {"string_to_param": {"*": VECTORS}, "name": "zstyle"},
            path,
        )
    pipe = reference_pipeline(load_file(tiny_checkpoint), TINY, tiny_checkpoint.parent)
    pipe.load_textual_inversion(str(path), token="zstyle")
    model = tiny_model.with_embeddings([load_embedding(path)])
    prompt = "a zstyle cat"
    assert not torch.allclose(ours(model, prompt), ours(tiny_model, prompt), atol=1e-2)
    torch.testing.assert_close(ours(model, prompt), theirs(pipe, prompt), rtol=1e-5, atol=1e-5)
