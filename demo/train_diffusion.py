"""Trains the demo's text encoder and UNet on the trained autoencoder: `python -m demo.train_diffusion --out DIR`."""

import argparse
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.dataset import draw, training_scene
from demo.optimize import Optimizer, to_model_range
from demo.train_vae import CONFIG as VAE_CONFIG
from sd_core.models.clip import CLIPConfig, CLIPTextEncoder
from sd_core.models.unet import UNet, UNetConfig
from sd_core.models.vae import VAE
from sd_core.sampling.schedule import v1_schedule
from sd_core.text.tokenizer import CLIPTokenizer

TEXT_WIDTH = 128
UNET_CONFIG = UNetConfig(
    channels=(64, 128, 128, 128), num_res_blocks=1, attention_levels=(1, 2), context_dim=TEXT_WIDTH
)
PROMPT_DROPOUT = 0.12
SNR_CAP = 5.0


def text_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    return CLIPConfig(
        vocab_size=tokenizer.eos + 1, width=TEXT_WIDTH, layers=3, heads=TEXT_WIDTH // 64, mlp_width=2 * TEXT_WIDTH
    )


class Diffusion(nn.Module):
    """The two networks that learn together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextEncoder(text_config(tokenizer))
        self.unet = UNet(UNET_CONFIG)
        embeddings = self.text_encoder.text_model.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
        # Residual branches and the answer start at zero, which trains faster and steadier.
        for name, parameter in self.unet.named_parameters():
            if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
                nn.init.zeros_(parameter)


@torch.inference_mode()
def training_set(vae: VAE, tokenizer: CLIPTokenizer, count: int) -> tuple[Tensor, Tensor]:
    """Scaled latents (count, 4, 16, 16), float16, and token ids (count, 77)."""
    rng, latents, ids = random.Random(1), [], []
    vae = vae.bfloat16().eval()
    for start in range(0, count, 32):
        scenes = [training_scene(rng) for _ in range(min(32, count - start))]
        mean, _ = vae.moments(to_model_range(torch.from_numpy(draw(scene)) for scene in scenes))
        latents.append((mean * VAE_CONFIG.scale_factor).half())
        ids += [tokenizer.encode(scene.prompt, 77).ids for scene in scenes]
    return torch.cat(latents), torch.tensor(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of vae.safetensors and the vocabulary")
    parser.add_argument("--pictures", type=int, default=29_120)
    parser.add_argument("--steps", type=int, default=3_500)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    out: Path = arguments.out

    tokenizer = CLIPTokenizer.load(out)
    vae = VAE(VAE_CONFIG)
    vae.load_state_dict(load_file(out / "vae.safetensors"))
    cache = out / "latents.safetensors"
    if not cache.exists():
        latents, ids = training_set(vae, tokenizer, arguments.pictures)
        save_file({"latents": latents, "ids": ids}, cache)
    data = load_file(cache)
    latents, ids = data["latents"], data["ids"]
    print(f"{len(latents)} pictures, latents' deviation {latents.float().std():.3f}", flush=True)

    torch.manual_seed(0)
    model = Diffusion(tokenizer)
    optimizer = Optimizer(model, learning_rate=1e-3, steps=arguments.steps)
    alphas = torch.tensor(v1_schedule().alphas_cumprod, dtype=torch.float32)
    no_prompt = torch.tensor(tokenizer.encode("", 77).ids)
    started, seen = time.monotonic(), []
    for step in range(arguments.steps):
        chosen = torch.randint(len(latents), (arguments.batch,))
        x0, prompt = latents[chosen].float(), ids[chosen].clone()
        prompt[torch.rand(len(prompt)) < PROMPT_DROPOUT] = no_prompt
        # Spread evenly over the schedule: less variance a step than independent draws.
        timesteps = ((torch.arange(len(x0)) + torch.rand(len(x0))) / len(x0) * 1000).long().clamp(max=999)
        alpha = alphas[timesteps][:, None, None, None]
        noise = torch.randn_like(x0)
        x = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
        eps = model.unet(x.bfloat16(), timesteps.float(), model.text_encoder(prompt)).float()
        snr = (alpha / (1 - alpha)).flatten()
        error = (eps - noise).square().mean(dim=(1, 2, 3))
        loss = (error * snr.clamp(max=SNR_CAP) / snr).mean()
        optimizer.step(loss)
        seen.append((loss.item(), error.mean().item()))
        if (step + 1) % 100 == 0:
            weighted, plain = (sum(column) / 100 for column in zip(*seen[-100:], strict=True))
            print(
                f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: "
                f"weighted {weighted:.4f}, plain {plain:.4f}",
                flush=True,
            )
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            save_file(optimizer.averaged(), out / "diffusion.safetensors")


if __name__ == "__main__":
    main()
