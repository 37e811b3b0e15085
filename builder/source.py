"""What a conversion reads: which tensor of which source file becomes which tensor of the destination."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats import foreign
from sd_core.formats.check import expected_shapes, require_equal
from sd_core.formats.detect import Architecture, detect
from sd_core.formats.files import DTYPE_NAMES, TensorFile, first_bytes, is_pickle, open_safetensors
from sd_core.formats.keys import (
    UNET_PREFIX,
    VAE_PREFIX,
    canonical_names,
    ema_name,
    is_weight,
    show,
    show_some,
    vae_names,
)
from sd_core.formats.prediction import declare, is_marker
from sd_core.formats.unpickle import read_checkpoint

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def open_checkpoint(path: Path) -> TensorFile:
    """A checkpoint file of any format, recognized by its content, not by its name."""
    return read_checkpoint(path) if is_pickle(first_bytes(path)) else open_safetensors(path)


def dtype_name(dtypes: Iterable[torch.dtype]) -> str:
    """The dtypes for a reader: `fp16`, or `mixed (fp16, fp32)`."""
    short = {dtype: name for name, dtype in DTYPES.items()}
    names = sorted({short.get(dtype, str(dtype).removeprefix("torch.")) for dtype in dtypes})
    return names[0] if len(names) == 1 else f"mixed ({', '.join(names)})"


def _finite(tensor: Tensor) -> bool:
    if tensor.dtype.itemsize == 1:  # eight-bit floats have no arithmetic of their own
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


@dataclass(frozen=True)
class Part:
    """One tensor of the destination: where it comes from, and the dtype in which it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: TensorFile
    stored: str

    @property
    def size(self) -> int:
        """Size in the destination, in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor in its new dtype. ModelError if it contains NaN or infinities, before or after the cast."""
        tensor = self.source.read(self.stored)
        cast = tensor.to(self.dtype)
        if not _finite(cast):
            if _finite(tensor):
                raise ModelError(
                    f"{show(self.stored)} holds numbers up to {tensor.double().abs().max().item():.3g}, "
                    f"beyond the range of {dtype_name([self.dtype])}: convert to bf16 or fp32"
                )
            raise ModelError(f"{show(self.stored)} in {self.source.path} holds NaN or infinities: it is damaged")
        return cast


def plan(
    source: TensorFile,
    vae: TensorFile | None,
    dtype: torch.dtype | None,
    *,
    use_ema: bool,
    prediction_type: str | None,
) -> tuple[Architecture, list[Part]]:
    """The architecture and every tensor to write, exactly those that its networks expect.

    Names outside the networks (schedule buffers, averages, ids) are left out. `prediction_type` replaces what the
    source declares. ModelError if the source is of another kind, lacks a tensor, or holds one of a wrong shape or
    an unknown name.
    """
    foreign.refuse(source.shapes)
    origins = {
        name: (source, stored)
        for name, stored in canonical_names(name for name in source.tensors if is_weight(name)).items()
    }
    if vae is not None:
        others = {name: origin for name, origin in origins.items() if not name.startswith(VAE_PREFIX)}
        origins = others | {name: (vae, stored) for name, stored in _vae(vae).items()}
    if use_ema:
        origins |= _averages(source, origins)
    shapes = {name: file.tensors[stored].shape for name, (file, stored) in origins.items()}
    markers = {name: shape for name, shape in source.shapes.items() if is_marker(name)}
    metadata = source.metadata
    if prediction_type is not None:
        markers, metadata = declare(prediction_type, markers, metadata)
    architecture = detect(shapes | markers, metadata)
    require_equal(shapes, expected_shapes(architecture))
    if (found := architecture.vae.z_channels) != (wanted := architecture.unet.out_channels):
        raise ModelError(f"the VAE's latents have {found} channels, the UNet's {wanted}: they do not fit")
    return architecture, [_part(name, file, stored, dtype) for name, (file, stored) in origins.items()]


def _part(name: str, file: TensorFile, stored: str, dtype: torch.dtype | None) -> Part:
    entry = file.tensors[stored]
    if not entry.dtype.is_floating_point:
        raise ModelError(f"{show(stored)} holds {entry.dtype}, not floating-point numbers")
    if entry.dtype not in DTYPE_NAMES:  # such as 4-bit pairs, which cannot be cast either
        raise ModelError(f"{show(stored)} has the dtype {entry.dtype}, which is not supported")
    return Part(name, entry.shape, dtype or entry.dtype, file, stored)


def _vae(file: TensorFile) -> dict[str, str]:
    kind = foreign.recognize(file.shapes)
    if kind not in (None, foreign.VAE_ALONE):
        raise ModelError(f"{file.path}: not a VAE of v1.x: it is {kind}")
    names = vae_names(file.tensors)
    if not names:
        raise ModelError(f"{file.path}: it holds no VAE; its tensors are {show_some(file.tensors)}")
    return names


def _averages(source: TensorFile, names: Iterable[str]) -> dict[str, tuple[TensorFile, str]]:
    """The source's moving average of each UNet tensor in `names`. ModelError if one is missing or ambiguous."""
    averages = {name: ema_name(name) for name in names if name.startswith(UNET_PREFIX)}
    missing = [stored for stored in averages.values() if stored not in source.tensors]
    if missing:
        what = "no EMA weights" if len(missing) == len(averages) else f"no {show_some(missing)}"
        raise ModelError(f"the file holds {what}: convert it without --use-ema")
    if len(set(averages.values())) != len(averages):
        raise ModelError("the file's EMA names are ambiguous: without dots, one stands for several tensors")
    return {name: (source, stored) for name, stored in averages.items()}
