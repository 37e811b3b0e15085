"""The architecture of a checkpoint, from the shapes of its tensors and the metadata of its file."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sd_core.errors import ModelError
from sd_core.formats import foreign
from sd_core.formats.keys import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX, canonical_names
from sd_core.formats.prediction import EPSILON, PREDICTION_TYPE_KEY, ZERO_SNR_KEY, declared
from sd_core.models.clip import CLIPConfig
from sd_core.models.layers import NORM_GROUPS
from sd_core.models.unet import UNetConfig
from sd_core.models.vae import VAEConfig

NATIVE_SIZE_KEY = "sd_core.native_size"
NUM_HEADS_KEY = "sd_core.num_heads"
TEXT_HEADS_KEY = "sd_core.text_heads"
SCALE_FACTOR_KEY = "sd_core.scale_factor"
SOURCE_SHA256_KEY = "sd_core.source_sha256"

TEXT_ENCODER, AUTOENCODER = "the text encoder", "the VAE"

# Metadata for everything that shapes cannot show.
OVERRIDES = (NATIVE_SIZE_KEY, NUM_HEADS_KEY, TEXT_HEADS_KEY, SCALE_FACTOR_KEY, PREDICTION_TYPE_KEY, ZERO_SNR_KEY)

# No dimension of a v1.x network comes near this size. Larger ones would overflow in later arithmetic.
_MAX_DIMENSION = 2**20

# No module list of a v1.x network is longer. The limit keeps a hostile file from having millions of layers built.
_MAX_MODULES = 100


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build and drive the three networks.

    `native_size` is the side in pixels of the square images that the UNet was trained on. `prediction_type` is what
    the UNet predicts, "epsilon" (the noise) or "v_prediction"; `zero_terminal_snr` says whether it was trained on a
    schedule whose last timestep is pure noise.
    """

    text: CLIPConfig
    unet: UNetConfig
    vae: VAEConfig
    native_size: int = 512
    prediction_type: str = EPSILON
    zero_terminal_snr: bool = False

    @property
    def contents(self) -> "Contents":
        """What a file with all of these networks holds."""
        return Contents(self.text, self.unet, self.vae, self.native_size, self.prediction_type, self.zero_terminal_snr)


@dataclass(frozen=True)
class Contents:
    """What a file holds of a checkpoint: a UNet, and the other networks unless it lacks them.

    The fields are those of `Architecture`; None stands for a network that the file lacks.
    """

    text: CLIPConfig | None
    unet: UNetConfig
    vae: VAEConfig | None
    native_size: int
    prediction_type: str
    zero_terminal_snr: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """The networks that it lacks, as nouns."""
        parts = {TEXT_ENCODER: self.text, AUTOENCODER: self.vae}
        return tuple(name for name, config in parts.items() if config is None)

    def completed(self, text: CLIPConfig | None = None, vae: VAEConfig | None = None) -> Architecture:
        """The architecture, with these networks in place of those that it lacks.

        ModelError if one is missing then, or if the text encoder does not fit the UNet.
        """
        text, vae = self.text or text, self.vae or vae
        if text is None:
            raise ModelError(f"the file lacks {TEXT_ENCODER} (no name begins with {TEXT_PREFIX})")
        if vae is None:
            raise ModelError(
                f"the file lacks {AUTOENCODER} (no name begins with {VAE_PREFIX}); "
                "`python -m builder convert SRC DST --vae FILE` adds one"
            )
        if text.width != self.unet.context_dim:
            raise ModelError(
                f"the UNet attends to hidden states of width {self.unet.context_dim}, "
                f"but the text encoder's have {text.width}"
            )
        return Architecture(text, self.unet, vae, self.native_size, self.prediction_type, self.zero_terminal_snr)


def detect(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> Architecture:
    """The architecture of a v1.x checkpoint, from its tensors' names and shapes and the file's metadata.

    ModelError if the file is of another kind, which the message names, lacks a network or a tensor whose shape is
    needed.
    """
    return detect_contents(shapes, metadata).completed()


def detect_contents(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> Contents:
    """The same for a file that may lack the text encoder, the VAE or both."""
    foreign.refuse(shapes)
    names = canonical_names(shapes)
    weights = {name: shapes[stored] for name, stored in names.items()}
    unet = _unet(_Shapes("the UNet", UNET_PREFIX, weights), metadata)
    if unet.context_dim in foreign.CONTEXT_WIDTHS:
        kind = foreign.CONTEXT_WIDTHS[unet.context_dim]
        raise ModelError(
            f"not a Stable Diffusion v1.x checkpoint: it is {kind} "
            f"(its UNet attends to hidden states of width {unet.context_dim})"
        )
    text = _text(_Shapes(TEXT_ENCODER, TEXT_PREFIX, weights), metadata) if _holds(weights, TEXT_PREFIX) else None
    vae = detect_vae(weights, metadata) if _holds(weights, VAE_PREFIX) else None
    return Contents(text, unet, vae, _native_size(metadata), *declared(shapes, metadata))


def detect_vae(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> VAEConfig:
    """The VAE among the tensors of these canonical names. ModelError if it lacks one whose shape is needed."""
    return _vae(_Shapes(AUTOENCODER, VAE_PREFIX, shapes), metadata)


def detect_encoder(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], network: str) -> UNetConfig:
    """The UNet whose encoder has tensors of these names, without a prefix; `network` is what messages call it.

    ModelError if it lacks one whose shape is needed.
    """
    return _unet(_Shapes(network, "", shapes), metadata, has_decoder=False)


def _holds(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def require_supported(architecture: Architecture) -> None:
    """ModelError if the pipeline cannot generate images with the checkpoint, although it can be described."""
    taken, made = architecture.unet.in_channels, architecture.unet.out_channels
    latent = architecture.vae.z_channels
    # One that edits images also takes their latents, one that inpaints the latents of what is kept and a mask.
    if taken not in (latent, 2 * latent, 2 * latent + 1) or made != latent:
        raise ModelError(
            f"the UNet takes {taken} channels and returns {made}, but the VAE's latents have {latent}: "
            "such a checkpoint (depth, for example) is not supported"
        )
    if architecture.zero_terminal_snr and architecture.prediction_type == EPSILON:
        raise ModelError(
            "the file declares zero terminal SNR for a UNet that predicts the noise, which cannot start from pure "
            "noise; if the UNet predicts v, `python -m builder convert SRC DST --prediction-type v_prediction` says so"
        )


class _Shapes:
    """The shapes of one network's tensors, by their names without the network's prefix."""

    def __init__(self, network: str, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.network, self.prefix = network, prefix
        self.shapes = {
            name.removeprefix(prefix): tuple(shape) for name, shape in shapes.items() if name.startswith(prefix)
        }
        if not self.shapes:
            raise ModelError(f"the file lacks {network} (no name begins with {prefix})")

    def dim(self, name: str, axis: int, rank: int) -> int:
        shape = self.shapes.get(name)
        if shape is None:
            raise ModelError(f"{self.network} lacks {self.prefix}{name}, whose shape is needed")
        if len(shape) != rank or not all(0 < size <= _MAX_DIMENSION for size in shape):
            raise ModelError(f"{self.prefix}{name} has the shape {list(shape)}, which no v1.x network has")
        return shape[axis]

    def width(self, name: str) -> int:
        """The output channels of a convolution, which group normalization requires to be a multiple of 32."""
        width = self.dim(name, 0, 4)
        if width % NORM_GROUPS:
            raise ModelError(f"{self.prefix}{name} has {width} output channels, not a multiple of {NORM_GROUPS}")
        return width

    def indices(self, pattern: str) -> set[int]:
        """The numbers that the pattern's group matches at the start of the names."""
        regex = re.compile(pattern)
        return {int(match[1]) for name in self.shapes if (match := regex.match(name))}

    def count(self, prefix: str) -> int:
        """The length of a module list: its indices from 0 up to the first gap."""
        found = self.indices(rf"{re.escape(prefix)}\.(\d{{1,6}})\.")
        if len(found) > _MAX_MODULES:
            raise ModelError(f"{self.network} has {len(found)} entries in {self.prefix}{prefix}: not a v1.x network")
        return next(number for number in range(len(found) + 1) if number not in found)


def _unet(shapes: _Shapes, metadata: Mapping[str, str], *, has_decoder: bool = True) -> UNetConfig:
    blocks = shapes.count("input_blocks")
    downsamples = sorted(shapes.indices(r"input_blocks\.(\d{1,6})\.0\.op\."))
    # Block 0 is the first convolution. Each level then has its residual blocks and, except the last, a downsample.
    stride = downsamples[0] if downsamples else blocks
    if stride < 2:
        raise ModelError(f"{shapes.network} has no residual blocks before its first downsample: not a v1.x network")
    firsts = [1 + level * stride for level in range(len(downsamples) + 1)]
    channels = tuple(shapes.width(f"input_blocks.{first}.0.out_layers.3.weight") for first in firsts)
    attends = shapes.indices(r"input_blocks\.(\d{1,6})\.1\.")
    levels = tuple(level for level, first in enumerate(firsts) if attends & set(range(first, first + stride - 1)))
    heads = _positive(metadata, NUM_HEADS_KEY, UNetConfig.num_heads)
    for width in {channels[level] for level in levels} | {channels[-1]}:
        if width % heads:
            raise ModelError(
                f"{shapes.network} has the width {width}, which does not divide into {heads} heads; metadata "
                f"{NUM_HEADS_KEY} sets them"
            )
    return UNetConfig(
        in_channels=shapes.dim("input_blocks.0.0.weight", 1, 4),
        out_channels=shapes.dim("out.2.weight", 0, 4) if has_decoder else UNetConfig.out_channels,
        channels=channels,
        num_res_blocks=stride - 1,
        attention_levels=levels,
        context_dim=shapes.dim("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1, 2),
        num_heads=heads,
    )


def _text(shapes: _Shapes, metadata: Mapping[str, str]) -> CLIPConfig:
    tokens = "text_model.embeddings.token_embedding.weight"
    width = shapes.dim(tokens, 1, 2)
    heads = _positive(metadata, TEXT_HEADS_KEY, max(1, width // 64))
    if width % heads:
        raise ModelError(
            f"the text encoder's width {width} does not divide into {heads} heads; metadata {TEXT_HEADS_KEY} sets them"
        )
    return CLIPConfig(
        vocab_size=shapes.dim(tokens, 0, 2),
        max_length=shapes.dim("text_model.embeddings.position_embedding.weight", 0, 2),
        width=width,
        layers=shapes.count("text_model.encoder.layers"),
        heads=heads,
        mlp_width=shapes.dim("text_model.encoder.layers.0.mlp.fc1.weight", 0, 2),
    )


def _vae(shapes: _Shapes, metadata: Mapping[str, str]) -> VAEConfig:
    levels = shapes.count("encoder.down")
    if not levels:
        raise ModelError(f"the VAE lacks {VAE_PREFIX}encoder.down.0, whose shape is needed")
    return VAEConfig(
        in_channels=shapes.dim("encoder.conv_in.weight", 1, 4),
        z_channels=shapes.dim("post_quant_conv.weight", 0, 4),
        channels=tuple(shapes.width(f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)),
        num_res_blocks=shapes.count("encoder.down.0.block"),
        scale_factor=_scale_factor(metadata),
    )


def _positive(metadata: Mapping[str, str], key: str, default: int) -> int:
    text = metadata.get(key)
    if text is None:
        return default
    if not re.fullmatch(r"[1-9]\d{0,5}", text, re.ASCII):
        raise ModelError(f"metadata {key} is {text[:40]!r}, not a positive whole number")
    return int(text)


def _native_size(metadata: Mapping[str, str]) -> int:
    size = _positive(metadata, NATIVE_SIZE_KEY, Architecture.native_size)
    if size % 8 or not 64 <= size <= 2048:
        raise ModelError(f"metadata {NATIVE_SIZE_KEY} is {size}; it must be a multiple of 8 from 64 to 2048 pixels")
    return size


def _scale_factor(metadata: Mapping[str, str]) -> float:
    text = metadata.get(SCALE_FACTOR_KEY, str(VAEConfig.scale_factor))
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise ModelError(f"metadata {SCALE_FACTOR_KEY} is {text[:40]!r}, not a positive number")
    return factor
