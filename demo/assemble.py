"""Puts the trained networks together as a checkpoint in v1.5's layout: `python -m demo.assemble --out DIR`."""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from demo.dataset import SIDE
from sd_core.text.tokenizer import MERGES_FILE, VOCAB_FILE
from sd_core.weights.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX

WEIGHTS = Path(__file__).parent / "weights"
PREFIXES = {"text_encoder.": TEXT_PREFIX, "unet.": UNET_PREFIX}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder that was trained in")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the checkpoint goes")
    arguments = parser.parse_args()
    tensors = {VAE_PREFIX + name: tensor for name, tensor in load_file(arguments.out / "vae.safetensors").items()}
    for name, tensor in load_file(arguments.out / "diffusion.safetensors").items():
        module, _, rest = name.partition(".")
        tensors[PREFIXES[f"{module}."] + rest] = tensor
    arguments.weights.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in tensors.items()}
    save_file(halves, arguments.weights / "demo.safetensors", {"format": "pt", "sd_core.native_size": str(SIDE)})
    for file in (VOCAB_FILE, MERGES_FILE):
        shutil.copyfile(arguments.out / file, arguments.weights / file)


if __name__ == "__main__":
    main()
