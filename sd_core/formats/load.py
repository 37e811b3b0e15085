"""Checkpoint file -> the three networks, ready to run."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sd_core.errors import ModelError
from sd_core.formats.check import contained_networks, networks_shapes, require_equal
from sd_core.formats.detect import Architecture, Contents, detect_contents, require_supported
from sd_core.formats.files import TensorFile
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, ignored_names
from sd_core.formats.origins import origins_of, shapes_of
from sd_core.formats.prediction import beside
from sd_core.formats.unpickle import open_checkpoint
from sd_core.formats.weights import assign, read_weights
from sd_core.layout.choose import lay_out
from sd_core.models.clip import CLIPTextEncoder
from sd_core.models.unet import UNet
from sd_core.models.vae import VAE, Autoencoder


@dataclass(frozen=True)
class Networks:
    """The networks of one checkpoint in evaluation mode, and the file's metadata."""

    text_encoder: CLIPTextEncoder
    unet: UNet
    vae: Autoencoder
    architecture: Architecture
    metadata: dict[str, str]


@dataclass(frozen=True)
class Parts:
    """The networks that a file holds, in evaluation mode: always a UNet, None for one that it lacks.

    `ignored` are the names of its tensors that no network has, beside those that training is known to leave.
    """

    text_encoder: CLIPTextEncoder | None
    unet: UNet
    vae: VAE | None
    contents: Contents
    metadata: dict[str, str]
    ignored: tuple[str, ...] = ()

    def completed(self, text_encoder: CLIPTextEncoder | None = None, vae: Autoencoder | None = None) -> Networks:
        """All networks, with these in place of those that the file lacks.

        ModelError if one is missing then, or does not fit the UNet.
        """
        text_encoder, vae = self.text_encoder or text_encoder, self.vae or vae
        architecture = self.contents.completed(
            None if text_encoder is None else text_encoder.config, None if vae is None else vae.config
        )
        require_supported(architecture)
        assert text_encoder is not None and vae is not None
        return Networks(text_encoder, self.unet, vae, architecture, self.metadata)


def contents_of(path: Path) -> Contents:
    """What a checkpoint file holds, from its header alone. ModelError that names the file if it is of another kind."""
    with open_checkpoint(path) as file:
        try:
            return contents_in(file)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None


def contents_in(file: TensorFile) -> Contents:
    """What an open checkpoint file holds, with what a `.yaml` beside it declares.

    ModelError if it is of another kind, or if the pipeline cannot generate images with it.
    """
    contents = detect_contents(file.shapes, {**beside(file.path), **file.metadata})
    if not contents.missing:
        require_supported(contents.completed())
    return contents


def load_networks(path: Path, device: torch.device, dtype: torch.dtype, *, packed: bool = False) -> Networks:
    """The networks of a checkpoint that lacks none; see `load_parts`."""
    parts = load_parts(path, device, dtype, packed=packed)
    try:
        return parts.completed()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def load_parts(path: Path, device: torch.device, dtype: torch.dtype, *, packed: bool = False) -> Parts:
    """The networks of a v1.x `.safetensors` or `.ckpt`, every weight on `device` in `dtype`.

    With `packed` they are laid out for the device (`sd_core.layout.choose`): weights that their layers cast at
    first use stay as they are stored.

    On the CPU, tensors of a `.safetensors` that keep their stored dtype are views of the memory map (private, copy on
    write): they become resident at first use, and the file may be replaced by a rename but not written in place. See
    `read_weights` for the others.
    ModelError if the file is missing, damaged or of another kind, or if a network's tensors are not exactly those of
    its architecture. Tensors outside the networks are ignored.
    """
    with open_checkpoint(path) as file:
        try:
            contents, origins = contents_in(file), origins_of(file)
            networks = contained_networks(contents)
            require_equal(shapes_of(origins), networks_shapes(networks))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        kept: set[str] = set()
        if packed:
            for prefix, network in networks.items():
                kept.update(prefix + name for name in lay_out(network, device, dtype))
        tensors = read_weights(origins, kept, device, dtype)
        ignored = ignored_names(file.tensors, (origin.stored for origin in origins.values()))
        metadata = dict(file.metadata)
    for prefix, network in networks.items():
        assign(network, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    text_encoder, unet, vae = (networks.get(prefix) for prefix in (TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX))
    assert isinstance(unet, UNet)
    assert text_encoder is None or isinstance(text_encoder, CLIPTextEncoder)
    assert vae is None or isinstance(vae, VAE)
    return Parts(text_encoder, unet, vae, contents, metadata, tuple(ignored))
