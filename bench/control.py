"""One guided UNet call with a ControlNet at 512x512. `python -m bench.control [--dtype bf16] [--size 384]`

Each side runs it as its own pipeline does at every step: ours as the engine does, with keys and values of the prompts
and the embedded hint kept, and the two rows as one image up to their prompts; diffusers with the latents doubled.
`plain_s` is our call without the ControlNet, `share` what the ControlNet adds to it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.common import (
    LATENT_SIDE,
    Options,
    compare,
    options_of,
    random_model,
    step_command_line,
    step_inputs,
    summary,
    time_in_turn,
)
from sd_core.engine.kinds.hint import HintKind
from sd_core.engine.kinds.unet import UNetKind
from sd_core.engine.pool import Pool
from sd_core.formats.controlnet import load_guide
from sd_core.formats.keys import UNET_PREFIX
from sd_core.models.controlnet import ControlNet, ControlNetConfig
from sd_core.work import UNATTACHED, Attachments, Context, Control, HintWork, UNetWork
from tests.support.controls import TINY_CONTROLNET, random_controlnet, random_hint
from tests.support.reference import reference_controlnet, reference_unet


def random_file(options: Options) -> tuple[Path, ControlNetConfig]:
    """A random fp16 ControlNet, written at its first use."""
    config = TINY_CONTROLNET if options.tiny else ControlNetConfig()
    path = options.cache / f"controlnet-{'tiny' if options.tiny else 'full'}.safetensors"
    if not path.exists():
        half_written = path.with_suffix(".part")
        save_file({name: each.half() for name, each in random_controlnet(config).items()}, half_written)
        half_written.rename(path)
    return path, config


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = step_command_line(__doc__ or "", rounds=10)
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    checkpoint = random_model(options)
    model = checkpoint.load(options)
    file, config = random_file(options)
    network = load_guide(file, options.device, options.torch_dtype)
    assert isinstance(network, ControlNet)

    latents, states = step_inputs(options, arguments.size, checkpoint.architecture.unet.context_dim)
    pixels = random_hint(*(LATENT_SIDE * side for side in latents.shape[2:])).to(options.device)
    (hint,) = HintKind().run([HintWork(network, "hint", pixels)])
    contexts = tuple(Context(index, state[None]) for index, state in enumerate(states))
    control = Control(network, hint, (1.0,) * (len(network.zero_convs) + 1))
    work = UNetWork(model.unet_key, latents, 500.0, contexts, (0, 0), attached=Attachments(controls=(control,)))
    kind = UNetKind(Pool([model]), max_batch=1)

    tensors = {name: each.to(options.device, options.torch_dtype) for name, each in load_file(file).items()}
    their_control = reference_controlnet(tensors, config)
    weights = checkpoint.weights(UNET_PREFIX, options.device, options.torch_dtype)
    their_unet = reference_unet(weights, checkpoint.architecture.unet)
    doubled, timesteps = torch.cat([latents] * 2).to(options.torch_dtype), torch.tensor([500.0], device=options.device)
    doubled_hint = torch.cat([pixels] * 2).to(options.torch_dtype)

    def ours() -> Tensor:
        (output,) = kind.run([work])
        assert isinstance(output, Tensor)
        return output

    def theirs() -> Tensor:
        skips, middle = their_control(doubled, timesteps, states, doubled_hint, return_dict=False)
        output: Tensor = their_unet(
            doubled,
            timesteps,
            states,
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
        ).sample
        return output

    plain = replace(work, attached=UNATTACHED)
    seconds = time_in_turn({"plain": lambda: kind.run([plain]), "control": ours}, options)
    share = sum(seconds["control"]) / sum(seconds["plain"]) - 1
    about: dict[str, Any] = {"plain_s": summary(seconds["plain"], digits=5), "share": round(share, 3)}
    return compare("control", options, ours, "diffusers", theirs, latents=list(doubled.shape), **about)


if __name__ == "__main__":
    main()
