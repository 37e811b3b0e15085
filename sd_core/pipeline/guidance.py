"""Guidance: a sampler's call becomes rows of a forward, and their outputs become one prediction."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sd_core.additions import IMAGE_SCALE
from sd_core.pipeline.attaching import NOTHING_ATTACHED, Attached
from sd_core.pipeline.conditioning import Conditioning, Rows
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.span import acts
from sd_core.request import Request
from sd_core.work import (
    PLAIN,
    Call,
    Context,
    Extras,
    Prediction,
    Sampling,
    UNetWork,
    answering,
)

Outputs = Tensor | tuple[Tensor, Tensor]
"""A forward's output (n, 4, h, w), and the deep features of its rows if they are kept."""


@dataclass(frozen=True)
class Guiding:
    """A job's options of guidance besides its scale; the defaults change nothing.

    `rescale` is the part (0..1) by which a guided prediction is brought back to the deviation of the prompt's own.
    `pag_scale` is that of perturbed attention guidance. Only the part of the steps from `start` to `end` is guided.
    Every `deepcache` steps the whole UNet runs, between them its outermost block alone. `image_scale` is the scale of
    the sent image's guidance, if the UNet edits images.
    """

    rescale: float = 0.0
    pag_scale: float = 0.0
    start: float = 0.0
    end: float = 1.0
    deepcache: int = 1
    extras: Extras = PLAIN
    image_scale: float = IMAGE_SCALE

    @classmethod
    def of(cls, request: Request) -> "Guiding":
        freeu = None
        if request.freeu is not None:
            freeu = request.freeu.b1, request.freeu.b2, request.freeu.s1, request.freeu.s2
        return cls(
            rescale=request.guidance_rescale,
            pag_scale=request.pag_scale,
            start=request.guidance_start,
            end=request.guidance_end,
            deepcache=request.deepcache,
            extras=Extras(request.tiling, freeu, request.tome_ratio),
            image_scale=request.image_scale,
        )

    def acts(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` is guided."""
        return acts(step, steps, self.start, self.end)


UNCHANGED = Guiding()


def guided(
    sampling: Sampling,
    model: StableDiffusion,
    conditioning: Conditioning,
    guidance_scale: float,
    *,
    reads_uncond: bool = False,
    guiding: Guiding = UNCHANGED,
    steps: int = 1,
    attached: Attached = NOTHING_ATTACHED,
) -> Generator[UNetWork, Outputs, Tensor]:
    """Run a sampler of `steps` steps, answering each of its calls by a prediction guided away from the negative prompt.

    Sources: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance"; with several weighted prompts, Liu et al. 2022,
    "Compositional Visual Generation with Composable Diffusion Models", equation 12; Ahn et al. 2024, "Self-Rectifying
    Diffusion Sampling with Perturbed-Attention Guidance"; Lin et al. 2023, "Common Diffusion Noise Schedules and Sample
    Steps are Flawed", section 3.4; of a UNet that edits images, Brooks, Holynski & Efros 2023, "InstructPix2Pix",
    equation 3. With a scale <= 1 there is no guidance, and no row for the negative prompt unless the sampler reads the
    unconditional prediction.
    """
    denoiser, cache = model.denoiser, _DeepCache(guiding.deepcache)
    image_scale = guiding.image_scale if model.takes_image else 1.0

    def answer(call: Call) -> Generator[UNetWork, Outputs, Prediction]:
        is_inside = guiding.acts(call.step, steps)
        scale = guidance_scale if is_inside else 1.0
        rows = _Plan.of(
            conditioning.at(call),
            scale,
            guiding.pag_scale if is_inside else 0.0,
            image_scale if scale > 1 else 1.0,
            needs_uncond=reads_uncond,
        )
        work = UNetWork(
            model.unet_key,
            denoiser.scaled(call.x, call.sigma).expand(max(rows.inputs) + 1, -1, -1, -1),
            denoiser.timestep(call.sigma),
            rows.contexts,
            rows.inputs,
            guiding.extras,
            rows.perturbed,
            attached=attached.at(call.step, steps, len(rows.contexts), rows.negatives),
        )
        output = yield from cache.run(work, call.step)
        joined, uncond = rows.joined(output, guiding.rescale)
        x0 = denoiser.x0(call.x, call.sigma, joined)
        return Prediction(x0, x0 if uncond is joined else denoiser.x0(call.x, call.sigma, uncond))

    return answering(sampling, answer)


@dataclass(frozen=True)
class _Plan:
    """The rows of one call: the negative prompt if it is needed, the prompts, then the prompts perturbed.

    To guide an edited image, a row of the negative prompt without the image comes before them: it continues the second
    of two inputs, which have the image and have none.
    """

    rows: Rows
    scale: float
    pag_scale: float
    image_scale: float
    has_uncond: bool

    @classmethod
    def of(cls, rows: Rows, scale: float, pag_scale: float, image_scale: float, *, needs_uncond: bool) -> "_Plan":
        return cls(rows, scale, pag_scale, image_scale, len(rows.positive) > 1 or scale > 1 or needs_uncond)

    @property
    def has_blank(self) -> bool:
        """Whether there is a row without the image; its part in the result vanishes at a scale of 1."""
        return self.has_uncond and self.image_scale != 1

    @property
    def negatives(self) -> int:
        """How many rows of the negative prompt come first."""
        return self.has_blank + self.has_uncond

    @property
    def contexts(self) -> tuple[Context, ...]:
        positive = tuple(context for context, _ in self.rows.positive)
        negative = (self.rows.negative,) * self.negatives
        return (*negative, *positive, *(positive if self.pag_scale else ()))

    @property
    def inputs(self) -> tuple[int, ...]:
        """The input that each row continues."""
        return (*((1,) if self.has_blank else ()), *(0,) * (len(self.contexts) - self.has_blank))

    @property
    def perturbed(self) -> tuple[int, ...]:
        count, total = len(self.rows.positive), len(self.contexts)
        return tuple(range(total - count, total)) if self.pag_scale else ()

    def joined(self, output: Tensor, rescale: float) -> tuple[Tensor, Tensor]:
        """The guided output, and that of the negative prompt, which without one is the same.

        The combination is affine, so it can be taken of the networks' outputs as well as of their predictions.
        """
        weights = [weight for _, weight in self.rows.positive]
        count = len(weights)
        blank, output = output[: self.has_blank], output[self.has_blank :]
        prompts = output[self.has_uncond : self.has_uncond + count]
        if self.has_uncond:
            uncond = output[:1]
            direction = _weighted(prompts - uncond, weights)
            joined = uncond + self.scale * direction
        else:
            uncond = joined = prompts
            direction = None
        if self.has_blank:
            joined = joined + (self.image_scale - 1) * (uncond - blank)
        if self.pag_scale:
            joined = joined + self.pag_scale * _weighted(prompts - output[-count:], weights)
        if rescale and direction is not None and self.scale > 1:
            joined = _rescaled(joined, uncond + direction, rescale)
        return joined, uncond if self.has_uncond else joined


class _DeepCache:
    """The deep features of one image from its last full forward.

    Source: Ma, Fang & Wang 2023, "DeepCache: Accelerating Diffusion Models for Free", with a uniform interval.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._deep: Tensor | None = None
        self._rows: tuple[object, ...] = ()

    def run(self, work: UNetWork, step: int) -> Generator[UNetWork, Outputs, Tensor]:
        """The output of a work: by the outermost block only, if the features of the last full forward fit it.

        They are not if the prompts of a row, or what is attached, have changed.
        """
        rows = (*(context.key for context in work.contexts), work.perturbed, work.attached)
        if self._interval == 1:
            output = yield work
        elif self._deep is not None and rows == self._rows and step % self._interval:
            output = yield replace(work, deep=self._deep)
        else:
            whole = yield replace(work, keeps_deep=True)
            assert isinstance(whole, tuple)
            output, self._deep = whole
            self._rows = rows
        assert isinstance(output, Tensor)
        return output


def _weighted(differences: Tensor, weights: Sequence[float]) -> Tensor:  # (n, 4, h, w) -> (1, 4, h, w)
    """The weighted sum of the differences that the prompts make."""
    if len(weights) == 1 and weights[0] == 1:
        return differences
    factors = differences.new_tensor(weights)[:, None, None, None]
    return (factors * differences).sum(dim=0, keepdim=True)


def _rescaled(guided_output: Tensor, prompt_output: Tensor, part: float) -> Tensor:
    """The guided output, brought by this fraction to the deviation of the prompt's (diffusers' `rescale_noise_cfg`)."""
    ratio = prompt_output.float().std() / guided_output.float().std()
    return guided_output * (part * ratio + (1 - part))
