"""Prompts -> hidden states."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sd_core.cache import LRU
from sd_core.device import upload
from sd_core.engine.kinds.adapted import adapters_of, keys_of
from sd_core.engine.kinds.kind import Kind
from sd_core.engine.pool import Pool
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.given import Given
from sd_core.work import Context, TextWork, Token, Vector

# Prompts whose hidden states are kept, and their bytes: 236 kB each with v1.5 in float32.
KEPT, KEPT_BYTES = 128, 2**25

PROMPTS = 16
"""Prompts of one forward."""

NUMBERS = 16
"""Numbers that the encoder holds at its peak for a token, over its width."""


class TextKind(Kind[TextWork]):
    """Encodes prompts, and keeps the last ones: most jobs share their negative prompt, many all of it."""

    phase = "encode"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._kept: LRU[Hashable, Tensor] = LRU(KEPT, KEPT_BYTES, lambda states: states.nbytes)

    @property
    def capacity(self) -> float:
        return PROMPTS

    def key(self, work: TextWork) -> Hashable:
        return *self._source(work), len(work.prompts[0])

    def identity(self, work: TextWork) -> Hashable:
        return self._source(work), work.prompts

    @staticmethod
    def _source(work: TextWork) -> tuple[Hashable, ...]:
        """What its prompts are encoded by, as part of the keys of the results."""
        return work.network, work.skip, keys_of(work.adapters)

    def cost(self, work: TextWork) -> float:
        return len(work.prompts)

    def bytes(self, work: TextWork) -> int:
        encoder = self._pool.text_encoder(work.network)
        tokens = sum(len(prompt) for prompt in work.prompts)
        return NUMBERS * tokens * encoder.config.width * encoder.dtype.itemsize

    def run(self, works: Sequence[TextWork]) -> list[tuple[Context, ...]]:
        first, source = works[0], self._source(works[0])
        wanted = dict.fromkeys(prompt for work in works for prompt in work.prompts)
        states = {prompt: self._kept.get((*source, prompt)) for prompt in wanted}
        unknown = [prompt for prompt, kept in states.items() if kept is None]
        if unknown:
            encoder = self._pool.text_encoder(first.network)
            given = Given(adapters=adapters_of([first.adapters]))
            states_of_all = encoder(self._inputs(encoder, unknown), first.skip, given)
            for prompt, encoded in zip(unknown, states_of_all.split(1), strict=True):
                own = encoded.clone()  # a view would keep the whole batch alive
                states[prompt] = own
                self._kept.put((*source, prompt), own)
        contexts = {prompt: Context((*source, prompt), found) for prompt, found in states.items() if found is not None}
        return [tuple(contexts[prompt] for prompt in work.prompts) for work in works]

    def smallest(self, work: TextWork) -> TextWork | None:
        if len(work.prompts) == 1:
            return None
        return replace(work, prompts=work.prompts[:1])

    def run_in_parts(self, work: TextWork) -> tuple[Context, ...]:
        parts = [replace(work, prompts=(prompt,)) for prompt in work.prompts]
        return tuple(context for part in parts for context in self.run([part])[0])

    def release(self) -> None:
        self._kept.clear()

    def _inputs(self, encoder: CLIPTextEncoder, prompts: Sequence[tuple[Token, ...]]) -> Tensor:
        """Ids (B, T), or, if any token is an embedding's, input vectors (B, T, width)."""
        numbers = [[token if isinstance(token, int) else 0 for token in prompt] for prompt in prompts]
        ids = upload(torch.tensor(numbers), self._pool.device)
        vectors = [
            (row, column, token.values)
            for row, prompt in enumerate(prompts)
            for column, token in enumerate(prompt)
            if isinstance(token, Vector)
        ]
        if not vectors:
            return ids
        rows, columns, values = zip(*vectors, strict=True)
        inputs: Tensor = encoder.text_model.embeddings.token_embedding(ids)
        inputs[list(rows), list(columns)] = upload(torch.stack(values), self._pool.device).to(inputs.dtype)
        return inputs
