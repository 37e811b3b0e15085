"""A checkpoint and its tokenizer, loaded and ready to draw."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sd_core.device import DTYPES, choose_device, choose_dtype
from sd_core.errors import ModelError
from sd_core.formats.load import Networks, load_networks
from sd_core.pipeline.preview import LATENT_TO_RGB, LatentToRGB, latent_to_rgb_of
from sd_core.text.encode import PromptEncoder
from sd_core.text.tokenizer import CLIPTokenizer


@dataclass(frozen=True)
class ModelInfo:
    """What an answer says of the model. `sha256` is that of the checkpoint it was converted from, where known."""

    name: str
    sha256: str | None
    native_size: int
    device: str
    dtype: str


@dataclass(frozen=True)
class StableDiffusion:
    networks: Networks = field(repr=False)
    prompts: PromptEncoder
    info: ModelInfo
    latent_to_rgb: LatentToRGB = LATENT_TO_RGB

    @property
    def device(self) -> torch.device:
        return torch.device(self.info.device)

    @classmethod
    def load(
        cls, checkpoint: Path, tokenizer_dir: Path, device: str = "auto", dtype: str = "auto"
    ) -> "StableDiffusion":
        """Loads `checkpoint` (.safetensors) with `vocab.json` and `merges.txt` of `tokenizer_dir`.

        `device` is auto, cpu, cuda or mps, `dtype` auto, fp32, fp16 or bf16: auto takes the best device there is, and
        fp16 on it, fp32 on a CPU. Raises `ModelError` that names the file, `DeviceError` the setting, that is wrong.
        """
        tokenizer = CLIPTokenizer.load(tokenizer_dir)
        chosen = choose_device(device)
        name = choose_dtype(dtype, chosen)
        networks = load_networks(checkpoint, chosen, DTYPES[name], packed=True)
        vocabulary = networks.architecture.text.vocab_size
        if tokenizer.eos >= vocabulary:
            raise ModelError(
                f"{tokenizer_dir} holds another model's tokenizer: its end token is {tokenizer.eos}, "
                f"but {checkpoint} knows {vocabulary} tokens."
            )
        info = ModelInfo(
            name=checkpoint.stem,
            sha256=networks.metadata.get("sd_core.source_sha256"),
            native_size=networks.architecture.native_size,
            device=str(chosen),
            dtype=name,
        )
        prompts = PromptEncoder(tokenizer, networks.text_encoder, chosen)
        return cls(networks, prompts, info, latent_to_rgb_of(networks.metadata))
