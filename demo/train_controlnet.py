"""Train the demo's canny ControlNet: `python -m demo.train_controlnet`.

It starts as a copy of the UNet's encoder whose outputs are zero. In its training scenes the shapes lie at many more
places than in the base's, and only the edge map says where.
"""

import argparse
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from demo.assemble import CHECKPOINT, WEIGHTS
from demo.dataset import Figure, Scene, render, training_scene
from demo.optimize import Optimizer, to_model_range
from demo.train_diffusion import PROMPT_DROPOUT, training_rows
from sd_core.formats.load import Networks, load_networks
from sd_core.models.controlnet import ControlNet, ControlNetConfig
from sd_core.models.given import Residuals
from sd_core.models.layers import Conv2d
from sd_core.preprocessors.preprocess import preprocess
from sd_core.text.tokenizer import CLIPTokenizer

CONTROLNET = WEIGHTS / "controlnet" / "canny.safetensors"
DATA_SEED = 1
PURE_NOISE = 0.3


def placed(rng: random.Random, scene: Scene) -> Scene:
    """The scene with its shapes elsewhere and of other sizes: one of them anywhere, two of them in their halves."""
    if len(scene.figures) == 1:
        (figure,) = scene.figures
        return replace(scene, figures=(_moved(rng, figure, rng.uniform(0.14, 0.32), (0, 1), (0, 1)),))
    first, second = scene.figures
    sideways = abs(first.x - second.x) > abs(first.y - second.y)
    figures = []
    for figure in (first, second):
        position = figure.x if sideways else figure.y
        half = (0.0, 0.5) if position < 0.5 else (0.5, 1.0)
        across = (half, (0.0, 1.0)) if sideways else ((0.0, 1.0), half)
        figures.append(_moved(rng, figure, rng.uniform(0.14, 0.21), *across))
    return replace(scene, figures=tuple(figures))


def _moved(
    rng: random.Random, figure: Figure, radius: float, columns: tuple[float, float], rows: tuple[float, float]
) -> Figure:
    """The figure somewhere within these columns and rows, which are fractions of the image's side."""
    margin = radius + 0.03
    x, y = (rng.uniform(start + margin, end - margin) for start, end in (columns, rows))
    return replace(figure, x=x, y=y, radius=radius)


def edges(image: np.ndarray) -> np.ndarray:
    """The edge map (H, W, 3) of an image (H, W, 3), both uint8: white lines on black."""
    return preprocess("canny", image)


@dataclass(frozen=True)
class TrainingSet:
    """Scaled latents (N, 4, 16, 16), edge maps (N, 128, 128), uint8, and token ids (N, 77)."""

    latents: Tensor
    edges: Tensor
    ids: Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, networks: Networks, tokenizer: CLIPTokenizer, count: int) -> "TrainingSet":
        rng, latents, lines = random.Random(DATA_SEED), [], []
        scenes = [placed(rng, training_scene(rng)) for _ in range(count)]
        for start in range(0, count, 32):
            images = [render(scene) for scene in scenes[start : start + 32]]
            mean, _ = networks.vae.moments(to_model_range(torch.from_numpy(image) for image in images))
            latents.append(mean * networks.vae.config.scale_factor)
            lines += [torch.from_numpy(edges(image)[:, :, 0]) for image in images]
        ids = torch.tensor([tokenizer.encode(scene.prompt, 77).ids for scene in scenes])
        return cls(torch.cat(latents), torch.stack(lines), ids)

    def hints(self, chosen: Tensor) -> Tensor:  # (B,) -> (B, 3, 128, 128)
        return (self.edges[chosen].float() / 255)[:, None].expand(-1, 3, -1, -1)


@torch.no_grad()
def initial(networks: Networks, hints: Tensor) -> ControlNet:
    """A ControlNet that changes nothing yet, but already sees hints (B, 3, 128, 128).

    Under the usual initialization eight convolutions leave a thousandth of an edge map. Each is therefore scaled so
    that its output has deviation 1 (Mishkin & Matas 2016, "All you need is a good init").
    """
    network = ControlNet(ControlNetConfig(networks.unet.config))
    encoder = {name: tensor for name, tensor in networks.unet.state_dict().items() if name in network.state_dict()}
    network.load_state_dict(encoder, strict=False)
    for parameter in (*network.zero_convs.parameters(), *network.middle_block_out.parameters()):
        torch.nn.init.zeros_(parameter)
    x = hints
    for layer in network.input_hint_block:
        if isinstance(layer, Conv2d):
            layer.weight /= layer(x).std(dim=(0, 2, 3))[:, None, None, None]
            assert layer.bias is not None
            torch.nn.init.zeros_(layer.bias)
        x = layer(x)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=CONTROLNET, help="where the trained network goes")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    networks, tokenizer = load_networks(CHECKPOINT, torch.device("cpu"), torch.float32), CLIPTokenizer.load(WEIGHTS)
    data = TrainingSet.of(networks, tokenizer, arguments.images)
    control = initial(networks, data.hints(torch.arange(64).clamp(max=arguments.images - 1)))
    no_prompt = torch.tensor(tokenizer.encode("", 77).ids)
    for network in (networks.text_encoder, networks.unet):
        network.bfloat16().requires_grad_(requires_grad=False)
    optimizer = Optimizer(control, learning_rate=1e-3, steps=arguments.steps, ema_decay=0.99)
    started, losses = time.monotonic(), []
    for step in range(arguments.steps):
        chosen = torch.randint(len(data.latents), (arguments.batch,))
        prompt = data.ids[chosen].clone()
        prompt[torch.rand(len(prompt)) < PROMPT_DROPOUT] = no_prompt
        x, timesteps, target, weight = training_rows(data.latents[chosen], PURE_NOISE)
        states, x, timesteps = networks.text_encoder(prompt), x.bfloat16(), timesteps.float()
        residuals = control(x, timesteps, control.embed(data.hints(chosen)), control.given(states))
        given = replace(networks.unet.given(states), control=(Residuals(residuals),))
        error = (networks.unet(x, timesteps, given).float() - target).square().mean(dim=(1, 2, 3))
        optimizer.step((error * weight).mean())
        losses.append(error.mean().item())
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: error {mean:.4f}", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == arguments.steps:
            arguments.file.parent.mkdir(parents=True, exist_ok=True)
            halves = {f"control_model.{name}": tensor.half() for name, tensor in optimizer.averaged().items()}
            save_file(halves, arguments.file, {"format": "pt"})


if __name__ == "__main__":
    main()
