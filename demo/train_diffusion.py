"""Train the demo's text encoder and UNet on the trained autoencoder: `python -m demo.train_diffusion --out DIR`."""

import argparse
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.dataset import render, training_scene
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
TRAINING_SET_SEED = 1
PROMPT_DROPOUT = 0.12
SNR_CAP = 5.0
FIRST_PURE_TIMESTEP = 950
STARS_HELP = "weight of images with a star, the hardest shape, relative to other images"


def text_config(tokenizer: CLIPTokenizer) -> CLIPConfig:
    return CLIPConfig(
        vocab_size=tokenizer.eos + 1, width=TEXT_WIDTH, layers=3, heads=TEXT_WIDTH // 64, mlp_width=2 * TEXT_WIDTH
    )


class Diffusion(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = CLIPTextEncoder(text_config(tokenizer))
        self.unet = UNet(UNET_CONFIG)
        embeddings = self.text_encoder.text_model.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=0.02)
        nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
        # Residual branches and the output start at zero, for faster and more stable training.
        for name, parameter in self.unet.named_parameters():
            if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
                nn.init.zeros_(parameter)


@torch.inference_mode()
def training_set(vae: VAE, tokenizer: CLIPTokenizer, count: int) -> tuple[Tensor, Tensor]:
    """Scaled latents (count, 4, 16, 16), float16, and token ids (count, 77)."""
    rng, latents, ids = random.Random(TRAINING_SET_SEED), [], []
    vae = vae.bfloat16().eval()
    for start in range(0, count, 32):
        scenes = [training_scene(rng) for _ in range(min(32, count - start))]
        mean, _ = vae.moments(to_model_range(torch.from_numpy(render(scene)) for scene in scenes))
        latents.append((mean * VAE_CONFIG.scale_factor).half())
        ids += [tokenizer.encode(scene.prompt, 77).ids for scene in scenes]
    return torch.cat(latents).contiguous(), torch.tensor(ids)


def star_shares(ids: Tensor, tokenizer: CLIPTokenizer, stars: float) -> Tensor:
    """The weight of each image, from its prompt's token ids (count, 77): `stars` with a star, else 1."""
    (star,) = tokenizer.encode("star", 3).ids[1:2]
    return torch.where((ids == star).any(dim=1), stars, 1.0)


def training_rows(x0: Tensor, pure_noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, their timesteps, the eps to learn and each row's weight, for clean latents (B, 4, 16, 16).

    The first stage weights rows by min-SNR (Hang et al. 2023). But at the strongest noise, eps hardly depends on the
    prompt, and v1's schedule leaves a trace of the image even at its last timestep, which sampling does not have. The
    second stage therefore weights rows by sqrt(1 + 1 / SNR) more, and a share of its rows is pure noise.
    """
    alphas = torch.tensor(v1_schedule().alphas_cumprod, dtype=torch.float32)
    rows = len(x0)
    # Spread evenly over the schedule, for less variance per step than independent draws.
    timesteps = ((torch.arange(rows) + torch.rand(rows)) / rows * 1000).long().clamp(max=999)
    pure = torch.rand(rows) < pure_noise
    timesteps = torch.where(pure, torch.randint(FIRST_PURE_TIMESTEP, 1000, (rows,)), timesteps)
    alpha = alphas[timesteps][:, None, None, None]
    noise = torch.randn_like(x0)
    x = torch.where(pure[:, None, None, None], noise, alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise)
    target = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
    snr = (alpha / (1 - alpha)).flatten()
    weight = snr.clamp(max=SNR_CAP) / snr
    return x, timesteps, target, weight * (1 + 1 / snr).sqrt() if pure_noise else weight


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of vae.safetensors and the vocabulary")
    parser.add_argument("--images", type=int, default=29_120, help="size of the training set")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument(
        "--decay-steps", type=int, help="step at which the learning rate's cosine ends; default: --steps"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stars", type=float, default=1.0, help=STARS_HELP)
    parser.add_argument(
        "--pure-noise",
        type=float,
        default=0.0,
        help="second stage: continue the first one with this share of rows of pure noise",
    )
    return parser.parse_args()


def stored_training_set(out: Path, tokenizer: CLIPTokenizer, count: int) -> tuple[Tensor, Tensor]:
    """`training_set`, made once and stored in the folder."""
    file = out / "latents.safetensors"
    if not file.exists():
        vae = VAE(VAE_CONFIG)
        vae.load_state_dict(load_file(out / "vae.safetensors"))
        latents, ids = training_set(vae, tokenizer, count)
        save_file({"latents": latents, "ids": ids}, file)
    stored = load_file(file)
    return stored["latents"], stored["ids"]


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out
    tokenizer = CLIPTokenizer.load(out)
    latents, ids = stored_training_set(out, tokenizer, arguments.images)
    print(f"{len(latents)} images, latents' deviation {latents.float().std():.3f}", flush=True)

    second = arguments.pure_noise > 0
    torch.manual_seed(arguments.seed)
    model = Diffusion(tokenizer)
    if second:
        model.load_state_dict(load_file(out / "diffusion.safetensors"))
    optimizer = Optimizer(model, learning_rate=7e-4 if second else 1e-3, steps=arguments.decay_steps or arguments.steps)
    shares = star_shares(ids, tokenizer, arguments.stars)
    no_prompt = torch.tensor(tokenizer.encode("", 77).ids)
    started, losses = time.monotonic(), []
    for step in range(arguments.steps):
        chosen = torch.multinomial(shares, arguments.batch, replacement=True)
        x0, prompt = latents[chosen].float(), ids[chosen].clone()
        prompt[torch.rand(len(prompt)) < PROMPT_DROPOUT] = no_prompt
        x, timesteps, target, weight = training_rows(x0, arguments.pure_noise)
        given = model.unet.given(model.text_encoder(prompt))
        eps = model.unet(x.bfloat16(), timesteps.float(), given).float()
        error = (eps - target).square().mean(dim=(1, 2, 3))
        loss = (error * weight).mean()
        optimizer.step(loss)
        losses.append((loss.item(), error.mean().item()))
        if (step + 1) % 100 == 0:
            weighted, plain = (sum(column) / 100 for column in zip(*losses[-100:], strict=True))
            print(
                f"{step + 1}/{arguments.steps} {time.monotonic() - started:.0f} s: "
                f"weighted {weighted:.4f}, plain {plain:.4f}",
                flush=True,
            )
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            save_file(optimizer.averaged(), out / "diffusion.safetensors")


if __name__ == "__main__":
    main()
