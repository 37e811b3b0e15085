"""A request -> its conditioning and one coroutine a picture."""

from collections.abc import Callable
from dataclasses import dataclass

from sd_core.pipeline.images import to_pixels
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.picture import picture
from sd_core.pipeline.watch import Tell
from sd_core.request import Request
from sd_core.sampling.noise import CPUNoise
from sd_core.work import Conditioning, Picture


@dataclass(frozen=True)
class Prepared:
    """The pictures of one job, not yet begun, and what its reader should be told."""

    pictures: list[Picture]
    warnings: list[str]


def prepare(request: Request, model: StableDiffusion, tell: Callable[[int], Tell] | None = None) -> Prepared:
    """Encodes both prompts in one forward and makes the coroutines; call it where the networks run.

    `tell(index)` is what picture `index` tells of its steps.
    """
    prompts = model.prompts
    positive, warnings = prompts.tokenize(request.prompt, "prompt")
    negative, negative_warnings = prompts.tokenize(request.negative_prompt, "negative_prompt")
    conditioning = Conditioning(*prompts.encode([positive, negative]))
    vae = model.networks.vae
    shape = (1, vae.config.z_channels, request.height // vae.downscale, request.width // vae.downscale)
    pixels = None if request.image is None else to_pixels(request.image, model.device)
    pictures = [
        picture(request, conditioning, CPUNoise(seed, shape, model.device), pixels, tell and tell(index))
        for index, seed in enumerate(request.seeds)
    ]
    return Prepared(pictures, warnings + negative_warnings)
