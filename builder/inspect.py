"""A description of a checkpoint file, as lines for a person."""

from pathlib import Path

from builder.convert import sha256
from builder.source import dtype_name
from sd_core.errors import ModelError
from sd_core.formats.check import compare, expected_shapes
from sd_core.formats.detect import Architecture, detect
from sd_core.formats.keys import EMA_PREFIX, canonical_names, show
from sd_core.formats.unpickle import open_checkpoint


def inspect(path: Path) -> list[str]:
    """The file's format, size, hash, dtype and architecture, and the tensors that are missing or unexpected.

    ModelError if the file cannot be read or is not a checkpoint of v1.x; the message says what it is.
    """
    with open_checkpoint(path) as file:
        try:
            names = canonical_names(file.tensors)
            architecture = detect(file.shapes, file.metadata)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        expected = expected_shapes(architecture)
        difference = compare({name: file.tensors[stored].shape for name, stored in names.items()}, expected)
        weights = [file.tensors[names[name]] for name in expected if name in names]
        size = path.stat().st_size
        averages = sum(name.startswith(EMA_PREFIX) for name in file.tensors)
        misshaped = [f"{show(name)}: {list(found)}, not {list(shape)}" for name, found, shape in difference.misshaped]
        return [
            _line("file", str(path)),
            _line("format", file.format),
            _line("size", f"{size / 1e9:.2f} GB ({size:,} bytes)"),
            _line("sha256", sha256(path)),
            _line("dtype", dtype_name(stored.dtype for stored in weights)),
            *_describe(architecture),
            _line("tensors", f"{len(weights):,} of {len(expected):,}, {len(file.tensors) - len(names):,} extras"),
            _line("ema", f"{averages:,} tensors" if averages else "none"),
            *_list("missing", [show(name) for name in difference.missing]),
            *_list("unexpected", [show(name) for name in difference.unexpected]),
            *_list("misshaped", misshaped),
            *(_line("metadata", f"{show(key)} = {show(value)}") for key, value in sorted(file.metadata.items())),
        ]


def _describe(architecture: Architecture) -> list[str]:
    text, unet, vae = architecture.text, architecture.unet, architecture.vae
    inpainting = ", an inpainting checkpoint" if unet.in_channels == 2 * vae.z_channels + 1 else ""
    zero_snr = ", zero terminal SNR" if architecture.zero_terminal_snr else ""
    return [
        _line(
            "architecture",
            f"Stable Diffusion v1.x{inpainting}, {architecture.native_size} pixels, "
            f"predicts {architecture.prediction_type}{zero_snr}",
        ),
        _line(
            "  text encoder",
            f"{text.layers} layers of width {text.width}, {text.heads} heads, MLP {text.mlp_width}, "
            f"{text.vocab_size:,} tokens, {text.max_length} at most",
        ),
        _line(
            "  unet",
            f"{unet.in_channels} -> {unet.out_channels} channels, widths {_numbers(unet.channels)}, "
            f"{unet.num_res_blocks} residual blocks a level, "
            f"attention at levels {_numbers(unet.attention_levels)}, {unet.num_heads} heads, "
            f"context {unet.context_dim}",
        ),
        _line(
            "  vae",
            f"widths {_numbers(vae.channels)}, {vae.num_res_blocks} residual blocks a level, "
            f"{vae.z_channels} latent channels, scale {vae.scale_factor}",
        ),
    ]


def _line(label: str, value: str) -> str:
    return f"{label:<16}{value}"


def _list(label: str, entries: list[str]) -> list[str]:
    if not entries:
        return [_line(label, "none")]
    return [_line(label, str(len(entries))), *(f"  {entry}" for entry in entries)]


def _numbers(values: tuple[int, ...]) -> str:
    return " ".join(str(value) for value in values) or "none"
