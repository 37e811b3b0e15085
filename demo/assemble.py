"""Assemble the trained networks as a checkpoint in v1.5's layout: `python -m demo.assemble --out DIR`."""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo.dataset import SIDE, render, training_scene
from demo.optimize import to_model_range
from demo.train_vae import CONFIG as VAE_CONFIG
from sd_core.formats.detect import NATIVE_SIZE_KEY
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX
from sd_core.models.vae import VAE
from sd_core.pipeline.preview import METADATA_KEY as LATENT_TO_RGB_KEY
from sd_core.text.tokenizer import MERGES_FILE, VOCAB_FILE

WEIGHTS = Path(__file__).parent / "weights"
CHECKPOINT = WEIGHTS / "demo.safetensors"
PREFIXES = {"text_encoder.": TEXT_PREFIX, "unet.": UNET_PREFIX}


@torch.inference_mode()
def latent_to_rgb(vae: VAE, scenes: int = 128) -> list[list[float]]:
    """The linear map, with a constant row, from scaled latents to colours in [-1, 1] that fits these scenes best."""
    rng = random.Random(0)
    images = to_model_range(torch.from_numpy(render(training_scene(rng))) for _ in range(scenes))
    mean, _ = vae.moments(images)
    latents = (mean * vae.config.scale_factor).permute(0, 2, 3, 1).flatten(0, 2)
    colours = F.avg_pool2d(images, 8).permute(0, 2, 3, 1).flatten(0, 2)
    constant = torch.ones(len(latents), 1)
    fitted: Tensor = torch.linalg.lstsq(torch.cat([latents, constant], dim=1), colours).solution
    return [[round(weight, 4) for weight in row] for row in fitted.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the training")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the checkpoint goes")
    arguments = parser.parse_args()
    trained = load_file(arguments.out / "vae.safetensors")
    vae = VAE(VAE_CONFIG)
    vae.load_state_dict(trained)
    tensors = {VAE_PREFIX + name: tensor for name, tensor in trained.items()}
    for name, tensor in load_file(arguments.out / "diffusion.safetensors").items():
        module, _, rest = name.partition(".")
        tensors[PREFIXES[f"{module}."] + rest] = tensor
    arguments.weights.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": "pt",
        NATIVE_SIZE_KEY: str(SIDE),
        LATENT_TO_RGB_KEY: json.dumps(latent_to_rgb(vae)),
    }
    save_file(halves, arguments.weights / "demo.safetensors", metadata)
    for file in (VOCAB_FILE, MERGES_FILE):
        shutil.copyfile(arguments.out / file, arguments.weights / file)


if __name__ == "__main__":
    main()
