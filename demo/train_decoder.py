"""Sharpens the demo's decoder on the latents as they are drawn: `python -m demo.train_decoder --out DIR`.

The encoder stays as it is, and with it what the UNet has learned. The decoder sees noisy latents and learns to draw
the clean picture, so that what the UNet leaves a little off still comes out crisp.
"""

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from demo.dataset import draw, training_scene
from demo.optimize import Optimizer, to_model_range
from demo.train_vae import CONFIG
from sd_core.models.vae import VAE

MOST_NOISE = 0.25  # deviation, in units of the scaled latents' own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of vae.safetensors, which is replaced")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()

    torch.manual_seed(3)
    rng = random.Random(3)
    vae = VAE(CONFIG)
    vae.load_state_dict(load_file(arguments.out / "vae.safetensors"))
    vae.encoder.requires_grad_(requires_grad=False).bfloat16()
    vae.quant_conv.requires_grad_(requires_grad=False).bfloat16()
    optimizer = Optimizer(vae, learning_rate=7e-4, steps=arguments.steps)
    started, seen = time.monotonic(), []
    for step in range(arguments.steps):
        pixels = to_model_range(torch.from_numpy(draw(training_scene(rng))) for _ in range(arguments.batch))
        with torch.no_grad():
            mean, _ = vae.moments(pixels)
        noise = torch.randn_like(mean) * MOST_NOISE * torch.rand(len(mean), 1, 1, 1) / CONFIG.scale_factor
        error = F.l1_loss(vae.decoder(vae.post_quant_conv((mean + noise).bfloat16())).float(), pixels)
        optimizer.step(error)
        seen.append(error.item())
        if (step + 1) % 100 == 0:
            l1 = sum(seen[-100:]) / 100
            print(f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: L1 {l1:.4f}", flush=True)

    trained = {**load_file(arguments.out / "vae.safetensors"), **optimizer.averaged()}
    save_file(trained, arguments.out / "vae.safetensors")


if __name__ == "__main__":
    main()
