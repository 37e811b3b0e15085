"""The text encoder on a prompt and a negative prompt: two rows of 77 tokens. `python -m bench.text [--dtype bf16]`"""

from collections.abc import Sequence
from typing import Any

import torch

from bench.common import compare, parse, random_model
from sd_core.formats.keys import TEXT_PREFIX
from tests.support.reference import reference_text_encoder


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=30)
    model = random_model(options)
    encoder = model.load(options).networks.text_encoder
    theirs = reference_text_encoder(
        model.weights(TEXT_PREFIX, options.device, options.torch_dtype), model.architecture.text
    ).to(options.device)

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.architecture.text.vocab_size, (2, 77), generator=generator).to(options.device)

    def ours_call() -> torch.Tensor:
        states: torch.Tensor = encoder(ids)
        return states

    def theirs_call() -> torch.Tensor:
        states: torch.Tensor = theirs(ids).last_hidden_state
        return states

    return compare("text", options, ours_call, "transformers", theirs_call, ids=list(ids.shape))


if __name__ == "__main__":
    main()
