"""What an image asks for while it is generated, and what a sampler asks of its model.

Both are coroutines: they yield a question and are resumed with the answer.
"""

from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from sd_core.networks import Applied, Guide, ImageAdapter, ImageTokenizer, Upscaler

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
class Vector:
    """A token that an embedding file brings: its row `row`, an input vector (width,) of the text encoder.

    Vectors of files with equal content are equal.
    """

    sha256: str
    row: int
    values: Tensor = field(compare=False, repr=False)


@dataclass(frozen=True)
class Embedding:
    """A textual inversion: vectors (n, width), n at least 1, that stand for a word of a prompt.

    `names` are the words: the file's name without its ending, then what the file itself calls it. `sha256` is the
    file's.
    """

    names: tuple[str, ...]
    sha256: str
    vectors: Tensor = field(compare=False, repr=False)

    @property
    def tokens(self) -> tuple[Vector, ...]:
        return tuple(Vector(self.sha256, row, values) for row, values in enumerate(self.vectors))

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes


Token = int | Vector
"""An id of the tokenizer's vocabulary, or a vector in its place."""


@dataclass(frozen=True)
class TextWork:
    """Tokens of prompts, each begun, ended and padded; answered by one `Context` per prompt.

    The encoder stops `skip` layers before its end. `network` names a text encoder, `adapters` change it.
    """

    network: str
    prompts: tuple[tuple[Token, ...], ...]
    skip: int = 0
    adapters: tuple[Applied, ...] = ()


@dataclass(frozen=True)
class EncodeWork:
    """Pixels (1, 3, H, W) in [-1, 1], answered by the posterior's mean and log variance, each (1, 4, h, w).

    Works with equal keys hold equal pixels. `network` names a VAE. With `tiling`, opposite borders are neighbours.
    """

    network: str
    key: Hashable
    pixels: Tensor
    tiling: bool = False


@dataclass(frozen=True)
class HintWork:
    """A hint's pixels (1, C, H, W) in [0, 1], answered by a `Hint`.

    Works of one network with equal keys hold equal pixels. With `tiling`, opposite borders are neighbours.
    """

    network: Guide
    key: Hashable
    pixels: Tensor
    tiling: bool = False


@dataclass(frozen=True)
class ImageWork:
    """An image's pixels (1, 3, side, side), normalized as the network takes them; answered by a `Context` of tokens.

    Works with equal keys hold equal pixels. Without pixels, the answer is that for no image.
    """

    network: ImageTokenizer
    key: Hashable
    pixels: Tensor | None


@dataclass(frozen=True)
class Extras:
    """How a UNet's forward departs from the one that it was trained for; off by default.

    `tiling` makes opposite borders neighbours. `freeu` holds b1, b2, s1, s2. `tome_ratio` is the part of the tokens
    that is merged before self-attention at the finest resolution.
    """

    tiling: bool = False
    freeu: tuple[float, float, float, float] | None = None
    tome_ratio: float = 0.0


PLAIN = Extras()


@dataclass(frozen=True)
class Hint:
    """A hint as its network embeds it, (1, C, h, w) each. Equal keys mean equal networks and hints."""

    key: Hashable
    values: tuple[Tensor, ...] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Control:
    """A hint that steers the rows `rows` of a work, None: all of them.

    `scales` are the factors of what the network adds: to each skip connection and to the middle block's output
    (ControlNet), or to each level (T2I-Adapter).
    """

    network: Guide = field(compare=False, repr=False)
    hint: Hint
    scales: tuple[float, ...]
    rows: tuple[int, ...] | None = None

    def acts_on(self, row: int) -> bool:
        return self.rows is None or row in self.rows


@dataclass(frozen=True)
class ImagePrompt:
    """An image that the rows `rows` of a work read beside their prompts, None: all of them; and how strongly."""

    adapter: ImageAdapter = field(compare=False, repr=False)
    tokens: Context
    weight: float
    rows: tuple[int, ...] | None = None

    def acts_on(self, row: int) -> bool:
        return self.rows is None or row in self.rows


@dataclass(frozen=True)
class Attachments:
    """What is attached to a UNet for one work: the same for all of its rows, unless it names rows.

    Equal ones have the same effect: what they hold is compared by keys of its content, not by its tensors.
    """

    adapters: tuple[Applied, ...] = ()
    controls: tuple[Control, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()


UNATTACHED = Attachments()


@dataclass(frozen=True)
class UNetWork:
    """m inputs, continued with n contexts; answered by the network's output (n, 4, h, w).

    Row i continues input `image_of_row[i]` with `contexts[i]`; rows of one input are equal until they read their
    contexts, and are computed once up to there. `latents` (m, C, h, w) float32 are scaled as the network was trained.
    In the middle block's self-attention, the rows in `perturbed` attend to each pixel's own value alone.

    A work that `keeps_deep` is answered by the output and by the deep features (n, C, h, w) of its rows. With these as
    its `deep`, a later work runs the network's outermost block only.
    """

    network: str
    latents: Tensor
    timestep: float
    contexts: tuple[Context, ...]
    image_of_row: tuple[int, ...]
    extras: Extras = PLAIN
    perturbed: tuple[int, ...] = ()
    keeps_deep: bool = False
    deep: Tensor | None = None
    attached: Attachments = UNATTACHED


@dataclass(frozen=True)
class DecodeWork:
    """Latents (1, 4, h, w), answered by pixels (1, 3, H, W), about [-1, 1]. `network` names a VAE.

    With `tiling`, opposite borders are neighbours.
    """

    network: str
    latents: Tensor
    tiling: bool = False


@dataclass(frozen=True)
class UpscaleWork:
    """Pixels (1, 3, H, W) in [0, 1], answered by `network.scale` times as many a side."""

    network: Upscaler
    pixels: Tensor


@dataclass(frozen=True)
class HostTask:
    """Work for the host: `run` is called on a thread of the engine's pool and its result is the answer.

    Meanwhile the picture takes part in no forward, and its neighbours go on. If it does not wait, the answer comes at
    once and is a `Future` of the result. Pictures that ask for the same `run` at the same time share one call. What
    reads large files `loads`: it has threads of its own, so that the host work of others does not wait for it.
    """

    run: Callable[[], Any]
    waits: bool = True
    loads: bool = False


Work = TextWork | EncodeWork | HintWork | ImageWork | UNetWork | DecodeWork | UpscaleWork
"""Work for a network. Each type is registered with the kind that runs it, in `sd_core.engine.kinds`."""

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
