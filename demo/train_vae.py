"""Trains the demo's autoencoder: `python -m demo.train_vae --out DIR`."""

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from demo.dataset import draw, training_scene
from demo.optimize import Optimizer, to_model_range
from sd_core.models.vae import VAE, VAEConfig

CONFIG = VAEConfig(channels=(32, 64, 64, 128), num_res_blocks=1)
KL_WEIGHT = 5e-4


def crops(rng: random.Random, count: int, side: int) -> Tensor:
    """Square crops of training scenes, drawn at any scale at which they hold at least the crop."""
    pictures = []
    for _ in range(count):
        full = side if side == 128 else rng.randrange(side, 129, 4)
        left, top = rng.randrange(full - side + 1), rng.randrange(full - side + 1)
        picture = draw(training_scene(rng), full)[top : top + side, left : left + side]
        pictures.append(torch.from_numpy(picture.copy()))
    return to_model_range(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small-steps", type=int, default=2600, help="steps on 16 crops of 64x64")
    parser.add_argument("--full-steps", type=int, default=1300, help="steps on 4 pictures of 128x128")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    rng = random.Random(0)
    vae = VAE(CONFIG)
    steps = arguments.small_steps + arguments.full_steps
    optimizer = Optimizer(vae, learning_rate=1e-3, steps=steps)
    started, seen = time.monotonic(), []
    for step in range(steps):
        pixels = crops(rng, *((16, 64) if step < arguments.small_steps else (4, 128)))
        mean, logvar = vae.moments(pixels)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        error = F.l1_loss(vae.decoder(vae.post_quant_conv(z.bfloat16())).float(), pixels)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        optimizer.step(error + KL_WEIGHT * kl)
        seen.append(error.item())
        if (step + 1) % 100 == 0:
            l1 = sum(seen[-100:]) / 100
            print(f"{step + 1}/{steps} {time.monotonic() - started:.0f} s: L1 {l1:.4f}, KL {kl.item():.2f}, "
                  f"deviation of latents {mean.std().item():.2f}, of their noise {(0.5 * logvar).exp().mean():.3f}", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save_file(optimizer.averaged(), arguments.out / "vae.safetensors")


if __name__ == "__main__":
    main()
