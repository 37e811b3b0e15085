"""A checkpoint and its tokenizer, loaded and ready."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sd_core.catalogue import Entry, Kind, entry_of
from sd_core.device import DTYPES, choose_device, choose_dtype
from sd_core.errors import ModelError
from sd_core.formats.load import Networks, load_networks
from sd_core.models.vae import VAE
from sd_core.pipeline.preview import LATENT_TO_RGB, LatentToRGB, latent_to_rgb_of
from sd_core.sampling.denoise import Denoiser
from sd_core.sampling.schedule import v1_schedule
from sd_core.text.tokenizer import CLIPTokenizer
from sd_core.text.vocabulary import Named, Vocabulary


@dataclass(frozen=True)
class ModelInfo:
    """What a response says of the model. `sha256` is that of the checkpoint it was converted from, if known."""

    name: str
    sha256: str | None
    native_size: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Keys:
    """The names under which an engine finds the networks of each role. Networks with equal keys are the same."""

    text_encoder: str
    unet: str
    vae: str

    @classmethod
    def of(cls, file: Entry) -> "Keys":
        """Those of this version of a file."""
        version = f"{file.name}@{file.stamp.size}-{file.stamp.mtime_ns}"
        return cls(f"{version}/text", f"{version}/unet", f"{version}/vae")


@dataclass(frozen=True)
class StableDiffusion:
    """The networks of a checkpoint, its tokenizer with the embeddings that prompts may name, and how its UNet's output
    becomes a prediction.

    `file` is what it was read from, as of then. `warnings` are for whoever generates with it.
    """

    networks: Networks = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    info: ModelInfo
    denoiser: Denoiser = field(repr=False)
    file: Entry = field(repr=False)
    keys: Keys = field(repr=False)
    latent_to_rgb: LatentToRGB = LATENT_TO_RGB
    warnings: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> CLIPTokenizer:
        return self.vocabulary.tokenizer

    @property
    def text_key(self) -> str:
        return self.keys.text_encoder

    @property
    def unet_key(self) -> str:
        return self.keys.unet

    @property
    def vae_key(self) -> str:
        return self.keys.vae

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet takes a mask and the latents of what is kept besides its own: it was trained to inpaint."""
        return self.networks.unet.config.in_channels == 2 * self.networks.vae.config.z_channels + 1

    @property
    def device(self) -> torch.device:
        return torch.device(self.info.device)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.info.dtype]

    @classmethod
    def load(
        cls, checkpoint: Path, tokenizer_dir: Path, device: str = "auto", dtype: str = "auto"
    ) -> "StableDiffusion":
        """Load `checkpoint` (.safetensors) with `vocab.json` and `merges.txt` of `tokenizer_dir`.

        `device` is auto, cpu, cuda or mps, `dtype` auto, fp32, fp16 or bf16: auto is the best device there is, with
        fp16, or fp32 on a CPU. Raises `ModelError` that names the file, or `DeviceError` that names the setting.
        """
        tokenizer = CLIPTokenizer.load(tokenizer_dir)
        return cls.read(entry_of(Kind.CHECKPOINT, checkpoint), tokenizer, device, dtype)

    @classmethod
    def read(
        cls,
        file: Entry,
        tokenizer: CLIPTokenizer,
        device: str = "auto",
        dtype: str = "auto",
        safetensors: Path | None = None,
    ) -> "StableDiffusion":
        """As `load`, from a file of the catalogue, whose name the model has, or from `safetensors` made of it."""
        path = file.path if safetensors is None else safetensors
        chosen = choose_device(device)
        name = choose_dtype(dtype, chosen)
        networks = load_networks(path, chosen, DTYPES[name], packed=True)
        architecture = networks.architecture
        if tokenizer.eos >= architecture.text.vocab_size:
            raise ModelError(
                f"the tokenizer is another model's: its end token is {tokenizer.eos}, "
                f"but {path} knows {architecture.text.vocab_size} tokens."
            )
        info = ModelInfo(
            name=file.name,
            sha256=networks.metadata.get("sd_core.source_sha256"),
            native_size=architecture.native_size,
            device=str(chosen),
            dtype=name,
        )
        schedule = v1_schedule(zero_terminal_snr=architecture.zero_terminal_snr)
        denoiser = Denoiser(schedule, architecture.prediction_type)
        rgb = latent_to_rgb_of(networks.metadata)
        return cls(networks, Vocabulary.of(tokenizer), info, denoiser, file, Keys.of(file), rgb)

    def with_vae(self, vae: VAE, key: str) -> "StableDiffusion":
        """The same model with another VAE, that of this key."""
        return replace(self, networks=replace(self.networks, vae=vae), keys=replace(self.keys, vae=key))

    def with_embeddings(self, embeddings: Iterable[Named]) -> "StableDiffusion":
        """The same model, whose prompts may name these embeddings; of two with one name the first is taken.

        One that does not fit the text encoder is an error of the job that names it.
        """
        config = self.networks.text_encoder.config
        vocabulary = Vocabulary.of(self.tokenizer, embeddings, config.width, config.max_length - 2)
        return replace(self, vocabulary=vocabulary)
