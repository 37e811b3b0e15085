"""A checkpoint and its tokenizer, loaded and ready."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from sd_core.catalogue import Entry, Kind, entry_of
from sd_core.device import DTYPES, choose_device, choose_dtype
from sd_core.errors import InvalidRequest, ModelError
from sd_core.formats.detect import AUTOENCODER, SOURCE_SHA256_KEY, TEXT_ENCODER
from sd_core.formats.load import Networks, Parts, load_parts
from sd_core.formats.vae import read_vae
from sd_core.models.vae import Autoencoder
from sd_core.pipeline.preview import LATENT_TO_RGB, LatentToRGB, latent_to_rgb_of
from sd_core.sampling.denoise import Denoiser
from sd_core.sampling.schedule import v1_schedule
from sd_core.text.tokenizer import CLIPTokenizer
from sd_core.text.vocabulary import Named, Vocabulary

# The field of `Networks` and of `Keys` for each network that a checkpoint may lack.
ROLES = {TEXT_ENCODER: "text_encoder", AUTOENCODER: "vae"}


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
        return cls(*(f"{version_of(file)}/{role}" for role in ("text", "unet", "vae")))


def version_of(file: Entry) -> str:
    """A name that no other file has, and no other version of this one."""
    return f"{file.kind}/{file.file_name}@{file.stamp.size}-{file.stamp.mtime_ns}"


@dataclass(frozen=True)
class StandaloneVAE:
    """An autoencoder from a file of its own, and its key."""

    file: Entry
    network: Autoencoder = field(repr=False)
    key: str
    dtype: torch.dtype

    @classmethod
    def read(cls, file: Entry, device: torch.device, dtype: torch.dtype) -> "StandaloneVAE":
        """Raises `ModelError` that names the file."""
        return cls(file, read_vae(file.path, device, dtype, packed=True), version_of(file), dtype)

    @property
    def by_key(self) -> dict[str, nn.Module]:
        return {self.key: self.network}


@dataclass(frozen=True)
class StableDiffusion:
    """The networks of a checkpoint, its tokenizer with the embeddings that prompts may name, and how its UNet's output
    becomes a prediction.

    `file` is what it was read from, as of then. `borrowed` has a warning for each role whose network is another
    checkpoint's, because the file has none. `own_encoder` are the checkpoint's own VAE and its key, if images are
    decoded by another one that cannot encode.
    """

    networks: Networks = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    info: ModelInfo
    denoiser: Denoiser = field(repr=False)
    file: Entry = field(repr=False)
    keys: Keys = field(repr=False)
    latent_to_rgb: LatentToRGB = LATENT_TO_RGB
    borrowed: Mapping[str, str] = field(default_factory=dict)
    own_encoder: tuple[Autoencoder, str] | None = None

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
    def encoder(self) -> Autoencoder:
        return self.networks.vae if self.own_encoder is None else self.own_encoder[0]

    @property
    def encoder_key(self) -> str:
        return self.vae_key if self.own_encoder is None else self.own_encoder[1]

    @property
    def by_key(self) -> dict[str, nn.Module]:
        """All networks by their keys."""
        return {getattr(self.keys, role): getattr(self.networks, role) for role in vars(self.keys)}

    @property
    def takes_mask(self) -> bool:
        """Whether the UNet takes a mask and the latents of what is kept besides its own: it was trained to inpaint."""
        return self.networks.unet.config.in_channels == 2 * self.networks.vae.config.z_channels + 1

    @property
    def takes_image(self) -> bool:
        """Whether the UNet takes an image's latents besides its own: it was trained to edit (instruct-pix2pix)."""
        return self.networks.unet.config.in_channels == 2 * self.networks.vae.config.z_channels

    @property
    def device(self) -> torch.device:
        return torch.device(self.info.device)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.info.dtype]

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        tokenizer_dir: Path,
        device: str = "auto",
        dtype: str = "auto",
        lender: Callable[[], "StableDiffusion"] | None = None,
    ) -> "StableDiffusion":
        """Load `checkpoint` (.safetensors) with `vocab.json` and `merges.txt` of `tokenizer_dir`.

        `lender` is asked for the model whose text encoder and VAE it takes if the file has none. `device` is auto, cpu,
        cuda or mps, `dtype` auto, fp32, fp16 or bf16: auto is the best device there is, with fp16, or fp32 on a CPU.
        Raises `ModelError` that names the file, or `DeviceError` that names the setting.
        """
        tokenizer = CLIPTokenizer.load(tokenizer_dir)
        return cls.read(entry_of(Kind.CHECKPOINT, checkpoint), tokenizer, device, dtype, lender)

    @classmethod
    def read(
        cls,
        file: Entry,
        tokenizer: CLIPTokenizer,
        device: str = "auto",
        dtype: str = "auto",
        lender: Callable[[], "StableDiffusion"] | None = None,
    ) -> "StableDiffusion":
        """As `load`, from a file of the catalogue, whose name the model has."""
        chosen = choose_device(device)
        name = choose_dtype(dtype, chosen)
        parts = load_parts(file.path, chosen, DTYPES[name], packed=True)
        other = lender() if lender is not None and parts.contents.missing else None
        networks = _completed(parts, file, other)
        architecture = networks.architecture
        if tokenizer.eos >= architecture.text.vocab_size:
            raise ModelError(
                f"the tokenizer is another model's: its end token is {tokenizer.eos}, "
                f"but {file.path} knows {architecture.text.vocab_size} tokens."
            )
        info = ModelInfo(
            name=file.name,
            sha256=networks.metadata.get(SOURCE_SHA256_KEY),
            native_size=architecture.native_size,
            device=str(chosen),
            dtype=name,
        )
        schedule = v1_schedule(zero_terminal_snr=architecture.zero_terminal_snr)
        denoiser = Denoiser(schedule, architecture.prediction_type)
        rgb = latent_to_rgb_of(networks.metadata)
        model = cls(networks, Vocabulary.of(tokenizer), info, denoiser, file, Keys.of(file), rgb)
        return model if other is None else model._borrowing(parts.contents.missing, other)

    def _borrowing(self, missing: Iterable[str], other: "StableDiffusion") -> "StableDiffusion":
        """The same model, which has the networks that its file lacks from the other one."""
        roles = {ROLES[name]: name.removeprefix("the ") for name in missing}
        borrowed = {
            role: f"the checkpoint {self.info.name} has no {name}: that of {other.info.name} was used"
            for role, name in roles.items()
        }
        return replace(
            self, keys=replace(self.keys, **{role: getattr(other.keys, role) for role in roles}), borrowed=borrowed
        )

    def with_vae(self, vae: StandaloneVAE) -> "StableDiffusion":
        """The same model with another VAE. Raises `InvalidRequest` if it does not fit."""
        own, other = self.networks.vae, vae.network
        if (own.config.z_channels, own.downscale) != (other.config.z_channels, other.downscale):
            raise InvalidRequest(f"vae: {vae.file.name!r} does not fit {self.info.name!r}: its latents are others")
        return replace(
            self,
            networks=replace(self.networks, vae=other),
            keys=replace(self.keys, vae=vae.key),
            borrowed={role: warning for role, warning in self.borrowed.items() if role != "vae"},
            own_encoder=None if other.encodes else (own, self.keys.vae),
        )

    def with_embeddings(self, embeddings: Iterable[Named]) -> "StableDiffusion":
        """The same model, whose prompts may name these embeddings; of two with one name the first is taken.

        One that does not fit the text encoder is an error of the job that names it.
        """
        config = self.networks.text_encoder.config
        vocabulary = Vocabulary.of(self.tokenizer, embeddings, config.width, config.max_length - 2)
        return replace(self, vocabulary=vocabulary)


def _completed(parts: Parts, file: Entry, lender: StableDiffusion | None) -> Networks:
    lent = None if lender is None else lender.networks
    try:
        return parts.completed() if lent is None else parts.completed(lent.text_encoder, lent.vae)
    except ModelError as error:
        raise ModelError(f"{file.path}: {error}") from None
