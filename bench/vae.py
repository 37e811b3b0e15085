"""The VAE's decoding of one 512x512 image. `python -m bench.vae [--dtype bf16]`"""

from collections.abc import Sequence
from typing import Any

import torch

from bench.common import compare, parse, random_model
from sd_core.formats.keys import VAE_PREFIX
from tests.support.reference import reference_vae


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(__doc__ or "", argv, rounds=7)
    model = random_model(options)
    vae = model.load(options).networks.vae
    theirs = reference_vae(model.weights(VAE_PREFIX, options.device, options.torch_dtype), model.architecture.vae)

    side = 8 if options.tiny else 64
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0)).to(options.device)
    unscaled = (latents / model.architecture.vae.scale_factor).to(options.torch_dtype)

    def ours_call() -> torch.Tensor:
        return vae.decode(latents)

    def theirs_call() -> torch.Tensor:
        pixels: torch.Tensor = theirs.decode(unscaled).sample
        return pixels

    return compare("vae", options, ours_call, "diffusers", theirs_call, warm_up=1, pixels=[8 * side, 8 * side])


if __name__ == "__main__":
    main()
