"""What an image asks for while it is generated, and what a sampler asks of its model.

Both are coroutines: they yield a question and are resumed with the answer.
"""

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Call:
    """A sampler's question: what is the clean image in these latents?

    `x` (1, 4, h, w) float32 is x0 + sigma * noise (k-diffusion's space). `step` counts the sampler's steps and `call`
    its calls within the step, both from 0.
    """

    x: Tensor
    sigma: float
    step: int
    call: int = 0


@dataclass(frozen=True)
class Prediction:
    """The answer to a `Call`: the clean latents (1, 4, h, w) as guided, and as the negative prompt alone predicts them.

    Without guidance both are the same.
    """

    x0: Tensor
    x0_uncond: Tensor


# A running sampler: asks for predictions, returns latents as the VAE takes them.
Sampling = Generator[Call, Prediction, Tensor]


@dataclass(frozen=True)
class Context:
    """A prompt's hidden states (1, T, D). Contexts with equal keys hold equal states."""

    key: Hashable
    states: Tensor = field(compare=False)  # tensors do not compare as one truth value


@dataclass(frozen=True)
class TextWork:
    """Token ids of prompts, each with start and end token and padding; answered by one `Context` per prompt.

    The encoder stops `skip` layers before its end. `network` names a text encoder.
    """

    network: str
    prompts: tuple[tuple[int, ...], ...]
    skip: int = 0


@dataclass(frozen=True)
class EncodeWork:
    """Pixels (1, 3, H, W) in [-1, 1], answered by the posterior's mean and log variance, each (1, 4, h, w).

    Works with equal keys hold equal pixels. `network` names a VAE.
    """

    network: str
    key: Hashable
    pixels: Tensor


@dataclass(frozen=True)
class UNetWork:
    """m inputs, continued with n contexts; answered by the network's output (n, 4, h, w).

    Row i continues input `image_of_row[i]` with `contexts[i]`; rows of one input are equal until they read their
    contexts, and are computed once up to there. `latents` (m, C, h, w) float32 are scaled as the network expects.
    `network` names a UNet.
    """

    network: str
    latents: Tensor
    timestep: float
    contexts: tuple[Context, ...]
    image_of_row: tuple[int, ...]


@dataclass(frozen=True)
class DecodeWork:
    """Latents (1, 4, h, w), answered by pixels (1, 3, H, W), about [-1, 1]. `network` names a VAE."""

    network: str
    latents: Tensor


@dataclass(frozen=True)
class HostTask:
    """Work for the host: `run` is called on a thread of the engine's pool and its result is the answer.

    Meanwhile the image takes part in no forward; other images continue.
    """

    run: Callable[[], Any]


# Work for a network. Each type is registered with the kind that runs it, in `sd_core.engine.kinds`.
Work = TextWork | EncodeWork | UNetWork | DecodeWork

# An image being generated: asks for `Work` and `HostTask`s; the task that it returns makes the pixels (H, W, 3).
Picture = Generator[Any, Any, HostTask]


def answering(
    asking: Generator[Question, Answer, Result], answer: Callable[[Question], Generator[Any, Any, Answer]]
) -> Generator[Any, Any, Result]:
    """Run a coroutine, answering each of its questions by another one."""
    try:
        question = next(asking)
        while True:
            question = asking.send((yield from answer(question)))
    except StopIteration as stop:
        result: Result = stop.value
        return result
