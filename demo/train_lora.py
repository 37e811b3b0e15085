"""Train the demo's LoRA, which adds pink and teal: `python -m demo.train_lora`.

The base's weights stay as they are: each layer of attention gets a low-rank product beside it, in the text encoder too,
because the words of the new colours are no tokens of the vocabulary but four bytes each.
"""

import argparse
import math
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.assemble import CHECKPOINT, WEIGHTS
from demo.dataset import added_scene, training_scene
from demo.optimize import Optimizer
from demo.train_colours import tinted_latents
from demo.train_diffusion import PROMPT_DROPOUT, training_rows
from sd_core.adapters.delta import LowRank
from sd_core.adapters.names import diffusers_name
from sd_core.formats.load import Networks, load_networks
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.given import Given
from sd_core.models.layers import Conv2d, GatedLinear, Linear
from sd_core.models.unet import UNet, UNetConfig
from sd_core.models.vae import Autoencoder
from sd_core.text.tokenizer import CLIPTokenizer

LORA = WEIGHTS / "loras" / "pink-teal.safetensors"
RANK = 8
KNOWN_SHARE = 0.2  # of the images: those without an added colour, so that the others stay what they are
METADATA = {"ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_network_dim": str(RANK)}
# The first and the last stages of the UNet, before and after the first and last transformer, and their neighbours.
FINE_STAGES = (
    *(f"input_blocks.{index}." for index in (0, 1, 2, 3)),
    *(f"output_blocks.{index}." for index in (4, 5, 6, 7)),
    "out.",
)
DATA_SEED = 1

Layer = Linear | GatedLinear | Conv2d


class Trained(nn.Module):
    """The adapter of one layer; its product starts at zero."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        out_size, *down = layer.weight.shape
        self.down = nn.Parameter(torch.randn(RANK, *down) / math.prod(down) ** 0.5)
        self.up = nn.Parameter(torch.zeros(out_size, RANK))
        rows, columns = layer.stride if isinstance(layer, Conv2d) else (1, 1)
        self.stride = (rows, columns)

    def forward(self, x: Tensor, out: Tensor, padding: tuple[int, int], gates: Tensor | None = None, /) -> Tensor:
        LowRank(self.down, self.up, self.stride).add_to(out, x, 1.0, padding, gates)
        return out


class Adapters(nn.Module):
    """Adapters of some layers of a network, by the layers' names."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.by_layer = {layer.name: Trained(layer) for layer in layers}
        self.trained = nn.ModuleList(self.by_layer.values())


def adapted_layers(network: CLIPTextEncoder | UNet) -> Iterator[Layer]:
    """The layers of transformers, as kohya's trainer adapts them by default, and all convolutions of the finest levels.

    A UNet that never generated the new colours' latents removes them again in the last steps, and its finest level,
    where that happens, has no transformers.
    """
    for name, layer in network.named_modules():
        is_text = isinstance(network, CLIPTextEncoder)
        in_transformer = "transformer_blocks" in name or name.endswith(("proj_in", "proj_out"))
        is_fine = isinstance(layer, Conv2d) and name.startswith(FINE_STAGES)
        if isinstance(layer, Linear | GatedLinear | Conv2d) and (is_text or in_transformer or is_fine):
            yield layer


class Lora(nn.Module):
    """The adapters of a text encoder and a UNet."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.text = Adapters(adapted_layers(networks.text_encoder))
        self.unet = Adapters(adapted_layers(networks.unet))

    def predict(self, networks: Networks, x: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """The adapted networks' eps (B, 4, H, W) for noisy latents (B, 4, H, W), timesteps (B,) and prompts (B, 77)."""
        states = networks.text_encoder(ids, given=Given(adapters=self.text.by_layer))
        adapters = self.unet.by_layer
        read = networks.unet.read(states, Given(adapters=adapters))
        eps: Tensor = networks.unet(x, timesteps, Given(read, adapters=adapters))
        return eps


def training_set(vae: Autoencoder, count: int) -> tuple[Tensor, list[str]]:
    """Scaled latents (count, 4, 16, 16) and their prompts."""
    rng = random.Random(DATA_SEED)
    scenes = [training_scene(rng) if rng.random() < KNOWN_SHARE else added_scene(rng) for _ in range(count)]
    return tinted_latents(vae, scenes), [scene.prompt for scene in scenes]


def kohya_parameters(lora: Lora, config: UNetConfig) -> dict[str, nn.Parameter]:
    """All that is trained, under kohya's names: those of diffusers, joined by underscores."""
    parameters = {}
    for prefix, adapters in (("lora_te_", lora.text), ("lora_unet_", lora.unet)):
        for name, layer in adapters.by_layer.items():
            spelled = diffusers_name(name, config) if adapters is lora.unet else name
            module = prefix + spelled.replace(".", "_")
            parameters[f"{module}.lora_down.weight"] = layer.down
            parameters[f"{module}.lora_up.weight"] = layer.up
    return parameters


def kohya_tensors(lora: Lora, config: UNetConfig) -> dict[str, Tensor]:
    """The file's tensors in half precision."""
    parameters = kohya_parameters(lora, config)
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        module, _, part = name.partition(".")
        kernel = parameters[f"{module}.lora_down.weight"].dim() - 2
        is_up = part == "lora_up.weight"
        tensors[name] = parameter.reshape(*parameter.shape, *[1] * kernel) if is_up else parameter
        tensors[f"{module}.alpha"] = torch.tensor(float(RANK))
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def restore(lora: Lora, config: UNetConfig, file: Path) -> None:
    """Start from a file of an earlier training; layers that it lacks start at zero."""
    stored = load_file(file)
    for name, parameter in kohya_parameters(lora, config).items():
        if name in stored:
            parameter.copy_(stored[name].reshape(parameter.shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=LORA, help="where the LoRA goes")
    parser.add_argument("--images", type=int, default=3072)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pure-noise", type=float, default=0.15, help="share of rows of pure noise")
    parser.add_argument("--start", type=Path, help="continue from this file")
    arguments = parser.parse_args()
    networks = load_networks(CHECKPOINT, torch.device("cpu"), torch.float32)
    latents, prompts = training_set(networks.vae, arguments.images)
    tokenizer = CLIPTokenizer.load(WEIGHTS)
    ids = torch.tensor([tokenizer.encode(prompt, 77).ids for prompt in prompts])
    no_prompt = torch.tensor(tokenizer.encode("", 77).ids)

    torch.manual_seed(arguments.seed)
    for network in (networks.text_encoder, networks.unet):
        network.bfloat16().requires_grad_(requires_grad=False)
    lora, config = Lora(networks), networks.unet.config
    if arguments.start is not None:
        restore(lora, config, arguments.start)
    optimizer = Optimizer(lora, learning_rate=arguments.learning_rate, steps=arguments.steps, ema_decay=0.99)
    started, losses = time.monotonic(), []
    for step in range(arguments.steps):
        chosen = torch.randint(len(latents), (arguments.batch,))
        prompt = ids[chosen].clone()
        prompt[torch.rand(len(prompt)) < PROMPT_DROPOUT] = no_prompt
        x, timesteps, target, weight = training_rows(latents[chosen], arguments.pure_noise)
        eps = lora.predict(networks, x.bfloat16(), timesteps.float(), prompt).float()
        error = (eps - target).square().mean(dim=(1, 2, 3))
        optimizer.step((error * weight).mean())
        losses.append(error.mean().item())
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / 50
            print(f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: error {mean:.4f}", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == arguments.steps:
            averaged = Lora(networks)
            averaged.load_state_dict(optimizer.averaged())
            arguments.file.parent.mkdir(parents=True, exist_ok=True)
            save_file(kohya_tensors(averaged, config), arguments.file, METADATA)


if __name__ == "__main__":
    main()
