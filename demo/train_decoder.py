"""Train the demo's decoder on latents like those of the UNet: `python -m demo.train_decoder --out DIR`.

The encoder is not changed, so the UNet stays valid. The decoder is given slightly noisy and stretched latents, as
guidance produces them, and learns to decode the clean image.
"""

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.dataset import render, training_scene
from demo.optimize import Optimizer, to_model_range
from demo.train_diffusion import STARS_HELP, TRAINING_SET_SEED, star_shares
from demo.train_vae import CONFIG
from sd_core.models.vae import VAE
from sd_core.text.tokenizer import CLIPTokenizer

MAX_NOISE = 0.25  # standard deviation, relative to that of the scaled latents
STRETCH = (0.95, 1.1)
OUTLINE_WEIGHT = 4.0


def outlines(pixels: Tensor) -> Tensor:  # (B, 3, H, W)
    """Weights (B, 1, H, W) of each pixel's error: 1 in plain areas, up to 5 at outlines, which distinguish shapes."""
    spread = F.max_pool2d(pixels, 7, stride=1, padding=3) + F.max_pool2d(-pixels, 7, stride=1, padding=3)
    return 1 + OUTLINE_WEIGHT * (spread.amax(dim=1, keepdim=True) / 2)


def noisy(z: Tensor) -> Tensor:  # (B, 4, H, W)
    """Scaled latents, stretched and with noise as the UNet generates them."""
    z = z * torch.empty(len(z), 1, 1, 1).uniform_(*STRETCH)
    return z + torch.randn_like(z) * MAX_NOISE * torch.rand(len(z), 1, 1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of vae.safetensors, which is replaced")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--stars", type=float, default=1.0, help=STARS_HELP)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    vae = VAE(CONFIG)
    vae.load_state_dict(load_file(arguments.out / "vae.safetensors"))
    vae.encoder.requires_grad_(requires_grad=False)
    vae.quant_conv.requires_grad_(requires_grad=False)
    optimizer = Optimizer(vae, learning_rate=arguments.learning_rate, steps=arguments.steps)
    # The latents of the UNet's training set are stored; its images are rendered again from the same scenes.
    data, rng = load_file(arguments.out / "latents.safetensors"), random.Random(TRAINING_SET_SEED)
    latents, scenes = data["latents"], [training_scene(rng) for _ in data["latents"]]
    shares = star_shares(data["ids"], CLIPTokenizer.load(arguments.out), arguments.stars)
    started, errors = time.monotonic(), []
    for step in range(arguments.steps):
        chosen = torch.multinomial(shares, arguments.batch, replacement=True)
        z = latents[chosen].float()
        pixels = to_model_range(torch.from_numpy(render(scenes[index])) for index in chosen.tolist())
        error = (vae.decode(noisy(z)) - pixels).abs()
        optimizer.step((error * outlines(pixels)).mean())
        errors.append(error.mean().item())
        if (step + 1) % 100 == 0:
            l1 = sum(errors[-100:]) / 100
            print(f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: L1 {l1:.4f}", flush=True)

    trained = {**load_file(arguments.out / "vae.safetensors"), **optimizer.averaged()}
    save_file(trained, arguments.out / "vae.safetensors")


if __name__ == "__main__":
    main()
