"""One UNet call with guidance at 512x512: two rows of 64x64 latents. `python -m bench.step [--dtype bf16] [--size 384]`

Each side runs it as its own pipeline does at every step: ours with keys and values of the prompts computed beforehand
and the two rows as one image, on a GPU as a CUDA graph, of a compiled forward if `python -m builder compile` made one;
diffusers with the latents doubled. `rounding` is the root mean square of each side's difference from diffusers' float32
output, over that of the output.
"""

from collections.abc import Sequence
from typing import Any

import torch

from bench.common import compare, options_of, random_model, rms_difference, step_command_line, step_inputs
from sd_core.engine.aot import folder_of, load_packages
from sd_core.engine.graphs import for_device
from sd_core.formats.keys import UNET_PREFIX
from tests.support.reference import reference_unet


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = step_command_line(__doc__ or "", rounds=10)
    arguments = parser.parse_args(argv)
    options = options_of(arguments)
    model = random_model(options)
    loaded = model.load(options).networks.unet
    packages = load_packages(folder_of(model.directory, loaded, options.device), loaded)
    unet = for_device(loaded, options.device, packages)
    theirs = reference_unet(model.weights(UNET_PREFIX, options.device, options.torch_dtype), model.architecture.unet)

    latents, context = step_inputs(options, arguments.size, model.architecture.unet.context_dim)
    timesteps = torch.tensor([500.0], device=options.device)
    doubled = torch.cat([latents, latents]).to(options.torch_dtype)
    given = loaded.given(context, torch.tensor([0, 0], device=options.device))

    def ours_call() -> torch.Tensor:
        eps: torch.Tensor = unet(latents, timesteps, given)
        return eps

    def theirs_call() -> torch.Tensor:
        eps: torch.Tensor = theirs(doubled, timesteps, context).sample
        return eps

    torch.backends.cudnn.allow_tf32 = False  # otherwise a GPU's float32 would be as coarse as float16
    exact = reference_unet(model.weights(UNET_PREFIX, options.device, torch.float32), model.architecture.unet)
    expected = exact(doubled.float(), timesteps, context.float()).sample
    del exact
    ours_call()  # the graph, which is what is timed, is captured at the second call
    rounding = {"ours": rms_difference(ours_call(), expected), "diffusers": rms_difference(theirs_call(), expected)}
    about: dict[str, Any] = {"latents": list(doubled.shape), "packages": len(packages), "rounding": rounding}
    return compare("step", options, ours_call, "diffusers", theirs_call, **about)


if __name__ == "__main__":
    main()
