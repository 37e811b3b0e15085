"""What long prompts cost. `python -m bench.prompts [--dtype bf16]`

`ratio` is the time of a step of four guided images, one of which has a prompt of three chunks (225 tokens), over that
of the same step with four short prompts; both run as the engine runs them, at 512x512, once their prompts are read.
`parse_s` is the time to read an 8,000-character prompt with weights and edits.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.common import parse, random_model, ratio, report, summary, time_in_turn
from sd_core.engine.kinds.unet import UNetKind
from sd_core.engine.pool import Pool
from sd_core.nested import MAX_PROMPT
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.prompts import read_prompts, reader_of
from sd_core.pipeline.sample import Run
from sd_core.work import Context, UNetWork

IMAGES, CHUNK, CHUNKS = 4, 77, 3
PHRASE = "a (red:1.2) [crown:hat:0.5] of a [king|queen], intricate [lighting], 8k, "


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=5)
    model = random_model(options).load(options)
    kind = UNetKind(Pool([model]), IMAGES)
    side = 8 if options.tiny else 64
    short = [_work(model, index, side, 1) for index in range(IMAGES)]
    mixed = [*short[1:], _work(model, IMAGES, side, CHUNKS)]
    seconds = time_in_turn({"short": _step(kind, short), "mixed": _step(kind, mixed)}, options)
    _parse_seconds(model)  # the tokenizer prepares itself at its first use
    parsing = [_parse_seconds(model) for _ in range(options.rounds)]
    return report(
        "prompts",
        options,
        images=IMAGES,
        short_s=summary(seconds["short"]),
        mixed_s=summary(seconds["mixed"]),
        ratio=ratio(seconds["mixed"], seconds["short"]),
        parse_s=summary(parsing, digits=5),
    )


def _work(model: StableDiffusion, index: int, side: int, chunks: int) -> UNetWork:
    """A guided image's step; its negative prompt is short, as most are."""
    generator = torch.Generator().manual_seed(index)
    contexts: list[Context] = []
    for length in (CHUNK, CHUNK * chunks):
        states = torch.randn(1, length, model.networks.unet.config.context_dim, generator=generator)
        contexts.append(Context((index, length, len(contexts)), states.to(model.device, model.networks.unet.dtype)))
    latents = torch.randn(1, 4, side, side, generator=generator).to(model.device)
    return UNetWork(model.unet_key, latents, 500.0, tuple(contexts), (0, 0))


def _step(kind: UNetKind, works: Sequence[UNetWork]) -> Callable[[], object]:
    return lambda: kind.run(works)


def _parse_seconds(model: StableDiffusion) -> float:
    """For a run of 20 steps, in which the prompt has four distinct versions."""
    text = (PHRASE * MAX_PROMPT)[:MAX_PROMPT]
    started = time.perf_counter()
    read_prompts(reader_of(model, "a1111"), model, text, "", Run("euler", "default", 20, 7.5))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
