"""One image, from its prompts to its pixels, as a coroutine."""

from collections.abc import Callable

from sd_core.pipeline.conditioning import Prompts, encoded
from sd_core.pipeline.hires import Second, second_start
from sd_core.pipeline.images import PendingImage, Source
from sd_core.pipeline.inpaint import Masked
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run, sample
from sd_core.pipeline.start import begin, begin_again
from sd_core.pipeline.watch import OnStep, after
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.work import DecodeWork, HostTask, Picture


def picture(
    request: Request,
    model: StableDiffusion,
    prompts: Prompts,
    noise: NoiseSource,
    source: Source | None = None,
    on_step: OnStep | None = None,
    second: Second | None = None,
) -> Picture:
    """Text-to-image, or image-to-image from `source`.

    Draws from `noise` in this order: what `pipeline.start` draws (the VAE posterior's sample, the initial noise, the
    kept part's sample), then the sampler's own draws. With `second`, the result goes through a hires pass, which draws
    from its own noise alike.
    """
    runs, tiling = Run.all_of(request), request.tiling
    conditioning = yield from encoded(prompts, model)
    start = yield from begin(model, noise, source, tiling=tiling)
    latents = yield from start.shown(
        sample(runs[0], model, conditioning, start.latents, noise, on_step, start.wrap, start.noise)
    )
    if second is not None:
        conditioning = yield from encoded(second.prompts, model, conditioning)
        latents = yield from second_start(request, model, latents, second)
        larger = None if source is None else source.larger
        start = yield from begin_again(model, second.noise, larger, latents, tiling=tiling)
        if on_step is not None:
            on_step = after(len(runs[0].grid(model)) - 1, runs[0].calls(model), on_step)
        latents = yield from start.shown(
            sample(runs[1], model, conditioning, start.latents, second.noise, on_step, start.wrap, start.noise)
        )
    pixels = yield DecodeWork(model.vae_key, latents, tiling)
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
