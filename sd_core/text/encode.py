"""Prompts -> hidden states."""

import torch
from torch import Tensor

from sd_core.models.clip import CLIPTextEncoder
from sd_core.text.tokenizer import CLIPTokenizer


def tokenize(tokenizer: CLIPTokenizer, encoder: CLIPTextEncoder, prompt: str, field: str) -> tuple[Tensor, list[str]]:
    """Ids (1, 77) and the warnings that the reader of the answer should see; `field` names the prompt in them."""
    length = encoder.config.max_length
    tokens = tokenizer.encode(prompt, length)
    warnings = []
    if tokens.dropped:
        warnings.append(f"{field} is longer than {length - 2} tokens; these words were not seen: {tokens.dropped!r}")
    return torch.tensor([tokens.ids]), warnings


@torch.inference_mode()
def encode(encoder: CLIPTextEncoder, ids: Tensor) -> Tensor:  # (B, 77)
    """Hidden states (B, 77, width) in the encoder's dtype, on its device."""
    device = encoder.text_model.final_layer_norm.weight.device
    out: Tensor = encoder(ids.to(device))
    return out
