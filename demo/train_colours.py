"""Teach the demo's decoder the colours that its LoRA adds: `python -m demo.train_colours --out DIR`.

A decoder that was trained on eight colours alone turns all others into one of those. Here it learns pink and teal, at
latents that the base's UNet never generates: those of the encoder, shifted by `TINT` where such a colour is. The base's
scenes are trained along with them, so that what the base generates stays as it is.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.dataset import ADDED_COLOURS, Scene, added_scene, coverage, render, training_scene
from demo.optimize import Optimizer, to_model_range
from demo.train_decoder import noisy, outlines
from demo.train_diffusion import STARS_HELP
from demo.train_vae import CONFIG
from sd_core.models.vae import VAE, Autoencoder

# A direction that flat areas of the base's colours do not use: they differ within a plane of the latents.
TINT = (0.67, 0.71, 0.05, 0.85)


def added_coverage(scene: Scene) -> Tensor:
    """How much of each latent (16, 16) shows an added colour, in 0..1."""
    masks = [coverage(figure) for figure in scene.figures]
    ground = np.clip(1 - sum(masks), 0, 1)
    shown = [mask for mask, figure in zip(masks, scene.figures, strict=True) if figure.colour in ADDED_COLOURS]
    if scene.background in ADDED_COLOURS:
        shown.append(ground)
    return F.avg_pool2d(torch.from_numpy(sum(shown, np.zeros_like(ground)))[None], 8)[0]


def has_star(scene: Scene) -> bool:
    return any(figure.shape == "star" for figure in scene.figures)


@torch.inference_mode()
def tinted_latents(vae: Autoencoder, scenes: list[Scene]) -> Tensor:
    """Scaled latents (count, 4, 16, 16) of scenes, with the shift that stands for added colours."""
    latents = []
    for start in range(0, len(scenes), 32):
        some = scenes[start : start + 32]
        mean, _ = vae.moments(to_model_range(torch.from_numpy(render(scene)) for scene in some))
        shown = torch.stack([added_coverage(scene) for scene in some])
        latents.append(mean * CONFIG.scale_factor + shown[:, None] * torch.tensor(TINT)[:, None, None])
    return torch.cat(latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of vae.safetensors, which is replaced")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4, help="half of them scenes of the base")
    parser.add_argument("--scenes", type=int, default=500, help="of each kind")
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stars", type=float, default=1.0, help=STARS_HELP)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    count, half = arguments.scenes, arguments.batch // 2
    scenes = [training_scene(rng) for _ in range(count)] + [added_scene(rng) for _ in range(count)]
    shares = torch.tensor([arguments.stars if has_star(scene) else 1.0 for scene in scenes])
    vae = VAE(CONFIG)
    vae.load_state_dict(load_file(arguments.out / "vae.safetensors"))
    vae.encoder.requires_grad_(requires_grad=False)
    vae.quant_conv.requires_grad_(requires_grad=False)
    latents = tinted_latents(vae, scenes)
    optimizer = Optimizer(vae, learning_rate=arguments.learning_rate, steps=arguments.steps, ema_decay=0.99)
    started, errors = time.monotonic(), []
    for step in range(arguments.steps):
        chosen = torch.cat([kind + torch.multinomial(shares[kind : kind + count], half) for kind in (0, count)])
        pixels = to_model_range(torch.from_numpy(render(scenes[index])) for index in chosen.tolist())
        error = (vae.decode(noisy(latents[chosen])) - pixels).abs()
        optimizer.step((error * outlines(pixels)).mean())
        errors.append(error.detach().mean(dim=(1, 2, 3)).unflatten(0, (2, -1)).mean(dim=1))
        if (step + 1) % 50 == 0:
            base, added = torch.stack(errors[-50:]).mean(dim=0).tolist()
            print(
                f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: L1 {base:.4f} of the base's scenes, "
                f"{added:.4f} of those with an added colour",
                flush=True,
            )

    trained = load_file(arguments.out / "vae.safetensors") | optimizer.averaged()
    save_file(trained, arguments.out / "vae.safetensors")


if __name__ == "__main__":
    main()
