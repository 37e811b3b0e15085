"""One image, from its prompts to its pixels, as a coroutine."""

from collections.abc import Callable

from sd_core.pipeline.conditioning import Constant
from sd_core.pipeline.images import PendingImage
from sd_core.pipeline.inpaint import Masked
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run, sample
from sd_core.pipeline.start import Source, begin
from sd_core.pipeline.watch import OnStep
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.work import DecodeWork, HostTask, Picture, TextWork


def picture(
    request: Request,
    model: StableDiffusion,
    prompts: tuple[tuple[int, ...], tuple[int, ...]],
    noise: NoiseSource,
    source: Source | None = None,
    on_step: OnStep | None = None,
) -> Picture:
    """Text-to-image, or image-to-image from `source`; `prompts` are the ids of the prompt and the negative prompt.

    Draws from `noise` in this order: what `pipeline.start` draws (the VAE posterior's sample, the initial noise, the
    kept part's sample), then the sampler's own draws.
    """
    conditioning = Constant(*(yield TextWork(model.text_key, prompts)))
    start = yield from begin(model, noise, source)
    sampling = sample(
        Run.of(request), model, conditioning, start.latents, noise, on_step, start.wrap, initial=start.noise
    )
    latents = yield from start.shown(sampling)
    pixels = yield DecodeWork(model.vae_key, latents)
    return HostTask(PendingImage(pixels).wait)


def masked_picture(prepare: Callable[[], Masked], drawn: Callable[[Source], Picture]) -> Picture:
    """Repaint the masked part of an image. `prepare` runs on the host, `drawn` is the picture of a source.

    The kept part comes back exactly; if the mask is black, that is the whole image, and nothing is drawn.
    """
    masked: Masked = yield HostTask(prepare)
    canvas = masked.canvas
    if masked.source is None:
        return HostTask(canvas.sent.copy)
    last = yield from drawn(masked.source())
    return HostTask(lambda: canvas.put_back(last.run()))
