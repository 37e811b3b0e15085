"""Train the demo's text encoder on the places of shapes: `python -m demo.train_text --out DIR`.

The order of two shapes follows from three words of a prompt, but the noisy latents that the UNet is given nearly always
reveal it, so the text encoder hardly learns it there. Here the prompt is the only input: a linear map from all token
states predicts the image's latents.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from demo.optimize import Optimizer
from demo.train_diffusion import Diffusion
from sd_core.text.tokenizer import CLIPTokenizer

BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder that train_diffusion wrote to")
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    out: Path = arguments.out

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.load(out)
    model = Diffusion(tokenizer)
    model.load_state_dict(load_file(out / "diffusion.safetensors"))
    data = load_file(out / "latents.safetensors")
    latents, ids = data["latents"].flatten(1), data["ids"]
    ids = ids[:, : int((ids != tokenizer.eos).sum(dim=1).max()) + 1]
    head = nn.Linear(ids.shape[1] * model.text_encoder.config.width, latents.shape[1])
    trained = nn.ModuleDict({"text_encoder": model.text_encoder, "head": head})
    optimizer = Optimizer(trained, learning_rate=1e-3, steps=arguments.steps, ema_decay=0.99)
    started, losses = time.monotonic(), []
    for step in range(arguments.steps):
        chosen = torch.randint(len(latents), (BATCH,))
        predicted = head(model.text_encoder(ids[chosen]).flatten(1)).float()
        loss = (predicted - latents[chosen].float()).square().mean()
        optimizer.step(loss)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            error = sum(losses[-100:]) / 100
            print(f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: {error:.4f}", flush=True)
    averaged = {k: v for k, v in optimizer.averaged().items() if k.startswith("text_encoder.")}
    save_file(model.float().state_dict() | averaged, out / "diffusion.safetensors")


if __name__ == "__main__":
    main()
