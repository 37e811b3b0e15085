"""Train the demo's autoencoder: `python -m demo.train_vae --out DIR`."""

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from demo.dataset import SIDE, render, training_scene
from demo.optimize import Optimizer, to_model_range
from sd_core.models.vae import VAE, VAEConfig

CONFIG = VAEConfig(channels=(32, 64, 64, 128), num_res_blocks=1)
KL_WEIGHT = 5e-4
CROP, BATCH = 64, 16
DECAY_STEPS = 3_900  # beyond the last step, because demo.train_decoder continues the decoder's training


def crops(rng: random.Random, count: int) -> Tensor:
    """Square crops (count, 3, CROP, CROP) of training scenes, rendered at random scales."""
    images = []
    for _ in range(count):
        side = rng.randrange(CROP, SIDE + 1, 4)
        left, top = rng.randrange(side - CROP + 1), rng.randrange(side - CROP + 1)
        image = render(training_scene(rng), side)[top : top + CROP, left : left + CROP]
        images.append(torch.from_numpy(image.copy()))
    return to_model_range(images)


@torch.no_grad()
def bake_scale(vae: VAE, pixels: Tensor) -> None:
    """Change the weights around the latents so that v1's scale factor gives each channel mean 0 and deviation 1.

    The decoded images stay the same: the decoder's first convolution undoes the scale and shift that the encoder's
    last one adds.
    """
    mean, _ = vae.moments(pixels)
    shift = mean.mean(dim=(0, 2, 3))
    gain = 1 / (CONFIG.scale_factor * mean.std(dim=(0, 2, 3)))
    channels = CONFIG.z_channels
    after, before = vae.quant_conv, vae.post_quant_conv
    assert after.bias is not None
    assert before.bias is not None
    after.weight[:channels] *= gain[:, None, None, None]
    after.bias[:channels] = (after.bias[:channels] - shift) * gain
    after.bias[channels:] += 2 * gain.log()
    before.bias += before.weight[:, :, 0, 0] @ shift
    before.weight /= gain[None, :, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    rng = random.Random(0)
    vae = VAE(CONFIG)
    optimizer = Optimizer(vae, learning_rate=1.5e-3, steps=DECAY_STEPS)
    started, errors = time.monotonic(), []
    for step in range(arguments.steps):
        pixels = crops(rng, BATCH)
        mean, logvar = vae.moments(pixels)
        error = F.l1_loss(vae.decode(vae.sample(mean, logvar, torch.randn_like(mean))), pixels)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        optimizer.step(error + KL_WEIGHT * kl)
        errors.append(error.item())
        if (step + 1) % 100 == 0:
            l1 = sum(errors[-100:]) / 100
            print(f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: L1 {l1:.4f}", flush=True)

    averaged = VAE(CONFIG)
    averaged.load_state_dict(optimizer.averaged())
    rng = random.Random(1)
    scenes = [training_scene(rng) for _ in range(256)]
    bake_scale(averaged, to_model_range(torch.from_numpy(render(scene)) for scene in scenes))
    save_file(averaged.state_dict(), arguments.out / "vae.safetensors")


if __name__ == "__main__":
    main()
