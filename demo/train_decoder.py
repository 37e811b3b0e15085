"""Sharpens the demo's decoder on latents as they are drawn: `python -m demo.train_decoder --out DIR`.

The encoder stays as it is, and with it what the UNet has learned. The decoder sees latents with noise in them and
stretched a little, as guidance leaves them, and learns to draw the clean picture.
"""

import argparse
import random
import time
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from demo.dataset import draw, training_scene
from demo.optimize import Optimizer, to_model_range
from demo.train_diffusion import TRAINING_SET_SEED
from demo.train_vae import CONFIG
from sd_core.models.vae import VAE

MOST_NOISE = 0.25  # deviation, in units of the scaled latents' own
STRETCH = (0.95, 1.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of vae.safetensors, which is replaced")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()

    torch.manual_seed(3)
    vae = VAE(CONFIG)
    vae.load_state_dict(load_file(arguments.out / "vae.safetensors"))
    vae.encoder.requires_grad_(requires_grad=False)
    vae.quant_conv.requires_grad_(requires_grad=False)
    optimizer = Optimizer(vae, learning_rate=1e-3, steps=arguments.steps)
    # The UNet's training set, whose latents are at hand, drawn again picture by picture.
    latents, rng = load_file(arguments.out / "latents.safetensors")["latents"], random.Random(TRAINING_SET_SEED)
    started, seen = time.monotonic(), []
    for step, first in zip(range(arguments.steps), count(step=arguments.batch), strict=False):
        z = latents[first : first + arguments.batch].float()
        pixels = to_model_range(torch.from_numpy(draw(training_scene(rng))) for _ in range(len(z)))
        z = z * torch.empty(len(z), 1, 1, 1).uniform_(*STRETCH)
        z = z + torch.randn_like(z) * MOST_NOISE * torch.rand(len(z), 1, 1, 1)
        drawn = vae.decoder(vae.post_quant_conv((z / CONFIG.scale_factor).bfloat16()))
        error = F.l1_loss(drawn.float(), pixels)
        optimizer.step(error)
        seen.append(error.item())
        if (step + 1) % 100 == 0:
            l1 = sum(seen[-100:]) / 100
            print(f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: L1 {l1:.4f}", flush=True)

    trained = {**load_file(arguments.out / "vae.safetensors"), **optimizer.averaged()}
    save_file(trained, arguments.out / "vae.safetensors")


if __name__ == "__main__":
    main()
