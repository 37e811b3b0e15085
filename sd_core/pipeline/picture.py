"""One image, from its prompts to its pixels, as a coroutine."""

from collections.abc import Callable, Sequence

from sd_core.pipeline.attached import Loaded, Loading
from sd_core.pipeline.attaching import Attached
from sd_core.pipeline.conditioning import Prompts, encoded
from sd_core.pipeline.control import Hints
from sd_core.pipeline.hires import second_start
from sd_core.pipeline.image_prompts import shown_of
from sd_core.pipeline.images import PendingImage, Source
from sd_core.pipeline.inpaint import Masked
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.sample import Run, sample
from sd_core.pipeline.sizes import sizes_of
from sd_core.pipeline.start import begin, begin_again
from sd_core.pipeline.watch import OnStep, after
from sd_core.request import Request
from sd_core.sampling.noise import NoiseSource
from sd_core.work import DecodeWork, HostTask, Picture


def picture(
    request: Request,
    model: StableDiffusion,
    loading: Loading,
    read: Callable[[Loaded], Sequence[Prompts]],
    noises: Sequence[NoiseSource],
    hints: Hints,
    source: Source | None = None,
    on_step: OnStep | None = None,
) -> Picture:
    """Text-to-image, or image-to-image from `source`.

    `read` reads the prompts of each run, once for all images of a job. Draws from the first of `noises` in this order:
    what `pipeline.start` draws (the VAE posterior's sample, the initial noise, the kept part's sample), then the
    sampler's own draws. A hires pass draws from the second one alike.
    """
    runs, tiling = Run.all_of(request), request.tiling
    loaded = yield from loading.loaded()
    prompts = read(loaded)
    conditioning = yield from encoded(prompts[0], model, loaded.loras.of(0).text)
    start = yield from begin(model, noises[0], source, tiling=tiling)
    sizes = sizes_of(request)
    steering = yield from hints.steering(loaded.guides, 0, sizes[0], source, model.device)
    shown = yield from shown_of(loaded.references)
    attached = Attached(loaded.attached_to(0), steering, shown)
    latents = yield from start.shown(
        sample(runs[0], model, conditioning, start.latents, noises[0], on_step, start.wrap, start.noise, attached)
    )
    for index, (run, texts, noise) in enumerate(zip(runs[1:], prompts[1:], noises[1:], strict=True), start=1):
        conditioning = yield from encoded(texts, model, loaded.loras.of(index).text, conditioning)
        latents = yield from second_start(request, model, latents, noise, loaded.upscaler)
        larger = None if source is None else source.larger
        if model.takes_image:
            larger = larger or source
        start = yield from begin_again(model, noise, larger, latents, tiling=tiling)
        steering = yield from hints.steering(loaded.guides, index, sizes[index], larger, model.device)
        if on_step is not None:
            on_step = after(len(runs[0].grid(model)) - 1, runs[0].calls(model), on_step)
        attached = Attached(loaded.attached_to(index), steering, shown)
        latents = yield from start.shown(
            sample(run, model, conditioning, start.latents, noise, on_step, start.wrap, start.noise, attached)
        )
    pixels = yield DecodeWork(model.vae_key, latents, tiling)
    return HostTask(PendingImage(pixels).wait)


def masked_picture(prepare: Callable[[], Masked], generate: Callable[[Source], Picture]) -> Picture:
    """Repaint the masked part of an image. `prepare` runs on the host, `generate` makes the picture from its source.

    The kept part comes back exactly; if the mask is black, that is the whole image, and nothing is generated.
    """
    masked: Masked = yield HostTask(prepare)
    canvas = masked.canvas
    if masked.source is None:
        return HostTask(canvas.sent.copy)
    last = yield from generate(masked.source())
    return HostTask(lambda: canvas.put_back(last.run()))
