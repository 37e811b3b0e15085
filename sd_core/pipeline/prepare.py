"""A request -> its conditioning and one coroutine a picture."""

from dataclasses import dataclass

import torch

from sd_core.contracts import Conditioning, GenerationRequest, Picture
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.picture import picture
from sd_core.sampling.noise import CPUNoise
from sd_core.text.encode import encode, tokenize


@dataclass(frozen=True)
class Prepared:
    """The pictures of one job, not yet begun, and what its reader should be told."""

    pictures: list[Picture]
    warnings: list[str]


def prepare(request: GenerationRequest, model: StableDiffusion) -> Prepared:
    """Encodes both prompts in one forward and makes the coroutines; call it where the networks run."""
    encoder = model.networks.text_encoder
    positive, warnings = tokenize(model.tokenizer, encoder, request.prompt, "prompt")
    negative, negative_warnings = tokenize(model.tokenizer, encoder, request.negative_prompt, "negative_prompt")
    states = encode(encoder, torch.cat([positive, negative]))
    conditioning = Conditioning(*states.chunk(2))
    vae = model.networks.vae
    shape = (1, vae.config.z_channels, request.height // vae.downscale, request.width // vae.downscale)
    pictures = [picture(request, conditioning, CPUNoise(seed, shape, model.device)) for seed in request.seeds]
    return Prepared(pictures, warnings + negative_warnings)
