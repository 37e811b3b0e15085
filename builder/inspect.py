"""A description of a model file, as lines for a person."""

import contextlib
from pathlib import Path

from builder.convert import sha256
from builder.describe import Pair, describe, entries
from builder.folder import open_source
from builder.source import Source, dtype_name
from sd_core.errors import ModelError
from sd_core.formats import foreign
from sd_core.formats.check import compare, expected_shapes
from sd_core.formats.detect import Contents, detect_contents
from sd_core.formats.files import TensorFile
from sd_core.formats.keys import EMA_PREFIX, ignored_names, show
from sd_core.formats.origins import shapes_of
from sd_core.formats.unpickle import open_checkpoint


def inspect(path: Path) -> list[str]:
    """What the file is: format, size, hash, dtype, architecture or base, and the tensors that are missing, unexpected
    or ignored. `path` may also be a folder of diffusers'.

    ModelError if it cannot be read or recognized.
    """
    if path.is_dir():
        with contextlib.ExitStack() as stack:
            return _lines([("folder", str(path)), *_checkpoint(open_source(path, stack))])
    with open_checkpoint(path) as file:
        kind = foreign.recognize(file.shapes)
        if kind is not None and not kind.is_known:
            raise ModelError(f"{path}: {kind}")
        size = path.stat().st_size
        about = [
            ("file", str(path)),
            ("format", file.format),
            ("size", f"{size / 1e9:.2f} GB ({size:,} bytes)"),
            ("sha256", sha256(path)),
        ]
        if kind is None:
            about += _checkpoint(Source.of(file))
        else:
            about += [("kind", str(kind)), *_tensors(file), *describe(file, kind)]
        metadata = [("metadata", f"{show(key)} = {show(value)}") for key, value in sorted(file.metadata.items())]
        return _lines([*about, *metadata])


def _tensors(file: TensorFile) -> list[Pair]:
    numbers = [entry.dtype for entry in file.tensors.values() if entry.dtype.is_floating_point]
    return [("dtype", dtype_name(numbers) if numbers else "none"), ("tensors", f"{len(file.tensors):,}")]


def _checkpoint(source: Source) -> list[Pair]:
    """A v1.x checkpoint, whole or in part. ModelError, which names it, if its architecture is not recognized."""
    shapes = shapes_of(source.origins)
    try:
        contents = detect_contents({**shapes, **source.markers}, source.metadata)
    except ModelError as error:
        raise ModelError(f"{source.path}: {error}") from None
    expected = expected_shapes(contents)
    difference = compare(shapes, expected)
    weights = [source.origins[name].dtype for name in expected if name in shapes]
    stored = [name for file in source.files for name in file.tensors]
    used = {origin.stored for origin in source.origins.values()}
    scales = sum(origin.scale is not None for origin in source.origins.values())
    averages = sum(name.startswith(EMA_PREFIX) for name in stored)
    misshaped = [f"{show(name)}: {list(found)}, not {list(shape)}" for name, found, shape in difference.misshaped]
    return [
        ("dtype", dtype_name(weights) + (f", {scales:,} weights with scales" if scales else "")),
        *_architecture(contents),
        ("tensors", f"{len(weights):,} of {len(expected):,}, {len(stored) - len(used):,} extras"),
        ("ema", f"{averages:,} tensors" if averages else "none"),
        *entries("missing", [show(name) for name in difference.missing]),
        *entries("unexpected", [show(name) for name in difference.unexpected]),
        *entries("misshaped", misshaped),
        *entries("ignored", [show(name) for name in ignored_names(stored, used)]),
    ]


def _architecture(contents: Contents) -> list[Pair]:
    text, unet, vae = contents.text, contents.unet, contents.vae
    latent = unet.out_channels
    use = {2 * latent: ", it edits images (instruct-pix2pix)", 2 * latent + 1: ", an inpainting checkpoint"}
    zero_snr = ", zero terminal SNR" if contents.zero_terminal_snr else ""
    lacks = "none: taken from the first checkpoint"
    return [
        (
            "architecture",
            f"Stable Diffusion v1.x{use.get(unet.in_channels, '')}, {contents.native_size} pixels, "
            f"predicts {contents.prediction_type}{zero_snr}",
        ),
        (
            "  text encoder",
            lacks
            if text is None
            else f"{text.layers} layers of width {text.width}, {text.heads} heads, MLP {text.mlp_width}, "
            f"{text.vocab_size:,} tokens, {text.max_length} at most",
        ),
        (
            "  unet",
            f"{unet.in_channels} -> {unet.out_channels} channels, widths {_numbers(unet.channels)}, "
            f"{unet.num_res_blocks} residual blocks a level, "
            f"attention at levels {_numbers(unet.attention_levels)}, {unet.num_heads} heads, "
            f"context {unet.context_dim}",
        ),
        (
            "  vae",
            f"{lacks}, or from `vae`"
            if vae is None
            else f"widths {_numbers(vae.channels)}, {vae.num_res_blocks} residual blocks a level, "
            f"{vae.z_channels} latent channels, scale {vae.scale_factor}",
        ),
    ]


def _lines(pairs: list[Pair]) -> list[str]:
    return [f"{label:<16}{value}" if label else f"  {value}" for label, value in pairs]


def _numbers(values: tuple[int, ...]) -> str:
    return " ".join(str(value) for value in values) or "none"
