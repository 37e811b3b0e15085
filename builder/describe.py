"""What files are that jobs name beside a checkpoint, as pairs of a label and a text."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

from sd_core.adapters.bases import V1
from sd_core.adapters.names import TEXT, UNET
from sd_core.errors import ModelError
from sd_core.formats import foreign
from sd_core.formats.alone import checked
from sd_core.formats.check import compare, networks_shapes
from sd_core.formats.controlnet import describe_guide
from sd_core.formats.embedding import load_embedding
from sd_core.formats.files import TensorFile
from sd_core.formats.foreign import Foreign
from sd_core.formats.image_encoder import named_encoder, understand_image_encoder
from sd_core.formats.ip_adapter import understand_ip_adapter
from sd_core.formats.keys import VAE_PREFIX, show
from sd_core.formats.origins import shapes_of
from sd_core.formats.upscaler import understand_upscaler
from sd_core.formats.vae import vae_of
from sd_core.models.controlnet import ControlNet
from sd_core.models.t2i_adapter import T2IAdapter
from sd_core.models.taesd import TAESD
from sd_core.pipeline.adapters import describe_adapter

Pair = tuple[str, str]

MAX_RANKS = 8
"""Distinct ranks that are listed; trainers use a few."""

_NETWORKS = {UNET: "UNet", TEXT: "text encoder"}

_READS_PROMPT = re.compile(r"attn2\.to_k(_ip)?\.weight$|\.to_k_ip\.weight$")
_WIDTHS = {
    768: V1,
    **{width: what.removeprefix("a ").removesuffix(" checkpoint") for width, what in foreign.CONTEXT_WIDTHS.items()},
}


def describe(file: TensorFile, kind: Foreign) -> list[Pair]:
    """What is known of a file of this kind beyond its tensors; a problem that prevents its use is the last line."""
    pairs: list[Pair] = []
    try:
        pairs.extend(_DESCRIBED.get(kind, _nothing)(file))
    except ModelError as error:
        pairs.append(("not usable", str(error).removeprefix(f"{file.path}: ")))
    return pairs


def entries(label: str, names: list[str]) -> list[Pair]:
    """How many names there are, then each on a line of its own."""
    return [(label, str(len(names)) if names else "none"), *(("", name) for name in names)]


def _nothing(file: TensorFile) -> list[Pair]:  # noqa: ARG001
    return []


def _lora(file: TensorFile) -> list[Pair]:
    found = describe_adapter(file)
    families = ", ".join(f"{name} ({count})" for name, count in found.families.items())
    modules = (f"{found.modules.get(network, 0)} of the {what}" for network, what in _NETWORKS.items())
    return [
        ("base", found.base or "not stated"),
        ("family", families or "none that fits v1.x"),
        ("modules", ", ".join(modules)),
        ("rank", _listed(found.ranks) or "none"),
        ("embeddings", ", ".join(map(show, found.embeddings)) or "none"),
        *entries("ignored", [show(name) for name in found.ignored]),
    ]


def _embedding(file: TensorFile) -> list[Pair]:
    embedding = load_embedding(file.path)
    count, width = embedding.vectors.shape
    base = {768: V1, 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL"}.get(width, "unknown")
    return [("words", ", ".join(map(show, embedding.names))), ("vectors", f"{count} of width {width}"), ("base", base)]


def _vae(file: TensorFile) -> list[Pair]:
    origins, network = vae_of(file)
    difference = compare(shapes_of(origins), networks_shapes({VAE_PREFIX: network}))
    halves = "encoder and decoder" if network.encodes else "decoder alone"
    kind = f"TAESD, {halves}" if isinstance(network, TAESD) else f"{halves}, scale {network.config.scale_factor}"
    return [
        ("base", V1),
        ("architecture", f"widths {' '.join(map(str, network.config.channels))}, {kind}"),
        *entries("missing", [show(name) for name in difference.missing]),
        *entries("unexpected", [show(name) for name in difference.unexpected]),
        *entries(
            "misshaped", [f"{show(name)}: {list(one)}, not {list(two)}" for name, one, two in difference.misshaped]
        ),
    ]


def _upscaler(file: TensorFile) -> Iterator[Pair]:
    network, parts = checked(file.shapes, understand_upscaler)
    config = network.config
    yield "architecture", f"{network.scale}x, {config.blocks} blocks of width {config.features}"
    yield from _ignored(file, {part.stored for part in parts.values()})


def _guide(file: TensorFile) -> Iterator[Pair]:
    """A ControlNet or a T2I-Adapter."""
    yield "base", _base(file)
    found = describe_guide(file)
    yield "form", found.form
    match found.network:
        case ControlNet() as network:
            yield _levels(network.config.channels, network.config.num_res_blocks, network.hint_channels)
        case T2IAdapter() as network:
            yield _levels(network.config.channels, network.config.blocks, network.config.hint_channels)
    yield "modules", str(found.modules)
    if found.ranks:
        yield "rank", _listed(found.ranks)
    yield from _ignored(file, found.used)


def _levels(widths: Sequence[int], blocks: int, hint_channels: int) -> Pair:
    each = " ".join(map(str, widths))
    return "architecture", f"widths {each}, {blocks} blocks a level, hints of {hint_channels} channels"


def _ip_adapter(file: TensorFile) -> Iterator[Pair]:
    yield "base", _base(file)
    network, parts = checked(file.shapes, understand_ip_adapter)
    config = network.config
    yield "architecture", f"{config.layout}, images of width {config.image_width}"
    yield "modules", f"{len(config.attentions)} attentions"
    yield from _ignored(file, {part.stored for part in parts.values()})


def _image_encoder(file: TensorFile) -> Iterator[Pair]:
    network, parts = checked(file.shapes, understand_image_encoder)
    config = network.config
    yield "base", named_encoder(config.embedding, config.width)
    size = f"{config.layers} layers of width {config.width}, {config.side} pixels in patches of {config.patch}"
    yield "architecture", f"{size}, embedding of width {config.embedding}"
    yield from _ignored(file, {part.stored for part in parts.values()})


def _ignored(file: TensorFile, used: Collection[str]) -> list[Pair]:
    return entries("ignored", [show(name) for name in file.tensors if name not in used])


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks[:MAX_RANKS])) + (", ..." if len(ranks) > MAX_RANKS else "")


def _base(file: TensorFile) -> str:
    """The family of UNets that a file's attention to prompts belongs to."""
    widths = {shape[1] for name, shape in file.shapes.items() if _READS_PROMPT.search(name) and len(shape) == 2}
    return (
        " or ".join(sorted(_WIDTHS.get(width, f"unknown (prompts of width {width})") for width in widths)) or "unknown"
    )


_DESCRIBED: dict[Foreign, Callable[[TensorFile], Iterable[Pair]]] = {
    foreign.LORA: _lora,
    foreign.EMBEDDING: _embedding,
    **dict.fromkeys(foreign.VAES, _vae),
    foreign.UPSCALER: _upscaler,
    foreign.CONTROLNET: _guide,
    foreign.T2I_ADAPTER: _guide,
    foreign.IP_ADAPTER: _ip_adapter,
    foreign.IMAGE_ENCODER: _image_encoder,
}
