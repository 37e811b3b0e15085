"""Prompts -> hidden states."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from sd_core.device import upload
from sd_core.models.clip import CLIPTextEncoder
from sd_core.text.tokenizer import CLIPTokenizer

REMEMBERED = 64
"""Prompts whose hidden states are kept: 77 x 768 numbers each with v1.5."""


class PromptEncoder:
    """Encodes prompts, and remembers those that it saw last: most jobs share their negative prompt, many all of it."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextEncoder, device: torch.device) -> None:
        self._tokenizer, self._encoder, self._device = tokenizer, encoder, device
        self._remembered: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def tokenize(self, prompt: str, field: str) -> tuple[tuple[int, ...], list[str]]:
        """77 ids and the warnings that the reader of the answer should see; `field` names the prompt in them."""
        length = self._encoder.config.max_length
        tokens = self._tokenizer.encode(prompt, length)
        if not tokens.dropped:
            return tokens.ids, []
        return tokens.ids, [
            f"{field} is longer than {length - 2} tokens; these words were not seen: {tokens.dropped!r}"
        ]

    @torch.inference_mode()
    def encode(self, prompts: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Hidden states (1, 77, width) of each prompt's ids, in the encoder's dtype, from at most one forward."""
        unknown = list(dict.fromkeys(ids for ids in prompts if ids not in self._remembered))
        known = {ids: self._remembered[ids] for ids in prompts if ids in self._remembered}
        if unknown:
            states = self._encoder(upload(torch.tensor(unknown), self._device))
            known |= zip(unknown, states.split(1), strict=True)
        for ids in prompts:
            self._remembered[ids] = known[ids]
            self._remembered.move_to_end(ids)
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return [known[ids] for ids in prompts]
