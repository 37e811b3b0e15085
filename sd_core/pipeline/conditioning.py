"""What an image is made of at each of its steps: the contexts of its prompts."""

from collections.abc import Generator, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from torch import Tensor

from sd_core.cache import LRU
from sd_core.networks import Applied
from sd_core.pipeline.model import StableDiffusion
from sd_core.text.prompt import Prompt, Timeline
from sd_core.text.weighting import join
from sd_core.work import Call, Context, TextWork, Token

CHUNKS_A_WORK = 16
"""Chunks that an image requests at once: many more would delay the steps of others."""

JOINED, JOINED_BYTES = 64, 2**25
"""Contexts of a job that are kept joined and weighted."""


@dataclass(frozen=True)
class Rows:
    """The contexts of one call. The prediction is uncond + scale * sum of weight_i * (cond_i - uncond)."""

    positive: tuple[tuple[Context, float], ...]
    negative: Context


class Conditioning(Protocol):
    """The prompts of one image; they may change from step to step."""

    def at(self, call: Call) -> Rows: ...


@dataclass(frozen=True)
class Constant:
    """The same prompt and negative prompt at every step."""

    positive: Context
    negative: Context

    def at(self, _call: Call) -> Rows:
        return Rows(((self.positive, 1.0),), self.negative)


@dataclass(frozen=True)
class Prompts:
    """The prompts of one run of a sampler, shared by the images of a job.

    A run's calls are counted as `calls_a_step` for each step. `skip` layers before the end the text encoder stops.
    `empty` holds the tokens of the empty prompt.
    """

    positive: tuple[Timeline, ...]
    negative: Timeline
    empty: tuple[Token, ...]
    skip: int = 0
    calls_a_step: int = 1
    joined: LRU[bytes, Tensor] = field(
        default_factory=lambda: LRU(JOINED, JOINED_BYTES, lambda states: states.nbytes), compare=False, repr=False
    )

    @property
    def chunks(self) -> list[tuple[Token, ...]]:
        """The tokens of every chunk that is to be encoded, each once."""
        prompts = [prompt for timeline in (*self.positive, self.negative) for _, prompt in timeline.versions]
        tokens = dict.fromkeys(chunk.tokens for prompt in prompts for chunk in prompt.chunks)
        if any(prompt.needs_empty for prompt in prompts):
            tokens[self.empty] = None
        return list(tokens)


@dataclass(frozen=True)
class Encoded:
    """Prompts whose chunks are encoded: hidden states (1, T, D) by tokens.

    `key` stands for the encoder, its adapters, and the layer that it stops at.
    """

    prompts: Prompts
    states: Mapping[tuple[Token, ...], Tensor]
    key: tuple[Hashable, ...]

    def at(self, call: Call) -> Rows:
        index = call.step * self.prompts.calls_a_step + call.call
        positive = tuple((self._context(each.at(index)), each.weight) for each in self.prompts.positive)
        return Rows(positive, self._context(self.prompts.negative.at(index)))

    def _context(self, prompt: Prompt) -> Context:
        joined = self.prompts.joined.get(prompt.digest)
        if joined is None:
            empty = self.states[self.prompts.empty] if prompt.needs_empty else None
            joined = join([self.states[chunk.tokens] for chunk in prompt.chunks], prompt.chunks, empty)
            self.prompts.joined.put(prompt.digest, joined)
        return Context((*self.key, prompt.digest), joined)


def encoded(
    prompts: Prompts, model: StableDiffusion, adapters: tuple[Applied, ...] = (), before: Encoded | None = None
) -> Generator[TextWork, tuple[Context, ...], Encoded]:
    """Encode all chunks of the prompts, some at a time, except those that were encoded `before` for the same image."""
    key = model.text_key, prompts.skip, tuple(adapter.key for adapter in adapters)
    states = dict(before.states) if before is not None and before.key == key else {}
    waiting = (tokens for tokens in prompts.chunks if tokens not in states)
    while some := tuple(islice(waiting, CHUNKS_A_WORK)):
        contexts = yield TextWork(model.text_key, some, prompts.skip, adapters)
        states |= {tokens: context.states for tokens, context in zip(some, contexts, strict=True)}
    return Encoded(prompts, states, key)
