"""Files of an autoencoder -> the network: in CompVis', diffusers' or TAESD's layout, alone or in a checkpoint."""

import re
from pathlib import Path

import torch

from sd_core.errors import ModelError
from sd_core.formats import foreign, from_diffusers
from sd_core.formats.check import meta_network, networks_shapes, require_equal
from sd_core.formats.detect import detect_vae
from sd_core.formats.files import TensorFile
from sd_core.formats.keys import VAE_PREFIX, show_some, vae_names
from sd_core.formats.origins import Origin, shapes_of
from sd_core.formats.unpickle import open_checkpoint
from sd_core.formats.weights import assign, read_weights
from sd_core.layout.choose import lay_out
from sd_core.models.taesd import TAESD
from sd_core.models.vae import VAE, Autoencoder, VAEConfig

LATENT_CHANNELS = VAEConfig.z_channels

MAX_TINY_WIDTH = 1024
"""Published ones have 64 channels. The limit keeps a hostile file from having a huge network built."""

_LINEAR_IN_DIFFUSERS = re.compile(r"\.mid\.attn_\d+\.(q|k|v|proj_out)\.weight$")
_TINY_LAYER = re.compile(r"(?:taesd_)?(?:(encoder|decoder)\.)?(layers\.)?(\d{1,2})\.(.+)")


def read_vae(path: Path, device: torch.device, dtype: torch.dtype, *, packed: bool = False) -> Autoencoder:
    """The autoencoder of a `.safetensors`, `.ckpt`, `.pt`, `.bin` or `.pth`, every weight on `device` in `dtype`.

    With `packed` it is laid out for the device, as `load_parts` does. A pickled file is read by the allow-list reader,
    which runs nothing of it. ModelError, which names the file, if it is damaged or holds no autoencoder of v1's
    latents.
    """
    with open_checkpoint(path) as file:
        try:
            origins, network = vae_of(file)
            require_equal(shapes_of(origins), networks_shapes({VAE_PREFIX: network}))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        kept = {VAE_PREFIX + name for name in lay_out(network, device, dtype)} if packed else set[str]()
        tensors = read_weights(origins, kept, device, dtype)
    assign(network, {name.removeprefix(VAE_PREFIX): tensor for name, tensor in tensors.items()})
    return network


def vae_of(file: TensorFile) -> tuple[dict[str, Origin], Autoencoder]:
    """The tensors of the autoencoder in a file by canonical name, and the network that they describe, still empty.

    ModelError if there is none, or one of other latents.
    """
    is_tiny = foreign.recognize(file.shapes) == foreign.TINY_VAE
    origins, network = _tiny(file) if is_tiny else _whole(file)
    if network.config.z_channels != LATENT_CHANNELS or network.config.in_channels != 3:
        raise ModelError(
            f"not a VAE of Stable Diffusion v1.x: its latents have {network.config.z_channels} channels, "
            f"not {LATENT_CHANNELS}"
        )
    return origins, network


def vae_origins(file: TensorFile) -> dict[str, Origin]:
    """The tensors of a VAE in CompVis' or diffusers' layout, alone or in a checkpoint. ModelError if there is none."""
    kind = foreign.recognize(file.shapes)
    if kind == foreign.DIFFUSERS_VAE:
        return diffusers_vae_origins(file)
    if kind not in (None, foreign.VAE_ALONE):
        raise ModelError(f"not a VAE of v1.x: it is {kind}")
    names = vae_names(file.tensors)
    if not names:
        raise ModelError(f"it holds no VAE; its tensors are {show_some(file.tensors)}")
    return {name: Origin.of(file, stored) for name, stored in names.items()}


def diffusers_vae_origins(file: TensorFile) -> dict[str, Origin]:
    """The tensors of a VAE in diffusers' layout, whose attention is linear layers instead of convolutions."""
    stored_names = {name.removeprefix("vae."): name for name in file.tensors}
    origins = {}
    for name, stored in from_diffusers.vae_names(stored_names).items():
        shape = file.tensors[stored_names[stored]].shape
        if len(shape) == 2 and _LINEAR_IN_DIFFUSERS.search(name):
            shape = (*shape, 1, 1)
        origins[name] = Origin.of(file, stored_names[stored], shape)
    return origins


def _whole(file: TensorFile) -> tuple[dict[str, Origin], Autoencoder]:
    origins = vae_origins(file)
    config = detect_vae(shapes_of(origins), file.metadata)
    return origins, meta_network(lambda: VAE(config))


def _tiny(file: TensorFile) -> tuple[dict[str, Origin], Autoencoder]:
    """TAESD in diffusers' layout or its author's, which counts the decoder's first operation too; either half alone."""
    halves = {found[1] for name in file.tensors if (found := _TINY_LAYER.fullmatch(name)) and found[1]}
    # A half in a file of its own has bare numbers. Only the decoder begins with an operation without weights.
    bare = "encoder" if "0.weight" in file.tensors else "decoder"
    origins = {}
    for stored in file.tensors:
        found = _TINY_LAYER.fullmatch(stored)
        if found is None:
            raise ModelError(f"not a tiny autoencoder: {show_some([stored])} is unknown")
        half = found[1] or bare
        number = int(found[3]) - (half == "decoder" and found[2] is None)
        origins[f"{VAE_PREFIX}{half}.layers.{number}.{found[4]}"] = Origin.of(file, stored)
    first = origins.get(f"{VAE_PREFIX}decoder.layers.0.weight")
    if first is None or len(first.shape) != 4 or not 0 < max(first.shape) <= MAX_TINY_WIDTH:
        raise ModelError("the file holds no decoder: `vae` needs taesd_decoder, alone or with taesd_encoder")
    width, channels = first.shape[:2]
    has_encoder = "encoder" in halves
    return origins, meta_network(lambda: TAESD(width, channels, has_encoder=has_encoder))
