"""What a conversion takes from its source files: which tensor is written from where."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats import foreign
from sd_core.formats.check import expected_shapes, require_equal
from sd_core.formats.detect import Architecture, detect
from sd_core.formats.files import TensorFile, first_bytes, is_pickle, open_safetensors
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
from sd_core.formats.unpickle import read_checkpoint

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def open_checkpoint(path: Path) -> TensorFile:
    """A checkpoint file of any format, told by its content and not by its name."""
    return read_checkpoint(path) if is_pickle(first_bytes(path)) else open_safetensors(path)


def dtype_name(dtypes: Iterable[torch.dtype]) -> str:
    """`fp16`, or `mixed (fp16, fp32)`."""
    short = {dtype: name for name, dtype in DTYPES.items()}
    names = sorted({short.get(dtype, str(dtype).removeprefix("torch.")) for dtype in dtypes})
    return names[0] if len(names) == 1 else f"mixed ({', '.join(names)})"


def _finite(tensor: Tensor) -> bool:
    if tensor.dtype.itemsize == 1:  # eight-bit floats have no arithmetic of their own
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


@dataclass(frozen=True)
class Part:
    """One tensor of the destination: where it comes from, and the dtype that it is written in."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: TensorFile
    stored: str

    @property
    def size(self) -> int:
        """Bytes in the destination."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor in its new dtype; ModelError where it holds NaN or infinities, or would."""
        tensor = self.source.read(self.stored)
        cast = tensor.to(self.dtype)
        if not _finite(cast):
            if _finite(tensor):
                raise ModelError(
                    f"{show(self.stored)} holds numbers up to {tensor.abs().max().item():.3g}, "
                    f"beyond the range of {dtype_name([self.dtype])}: convert to bf16 or fp32"
                )
            raise ModelError(f"{show(self.stored)} in {self.source.path} holds NaN or infinities: it is damaged")
        return cast


def plan(
    source: TensorFile, vae: TensorFile | None, dtype: torch.dtype | None, *, use_ema: bool
) -> tuple[Architecture, list[Part]]:
    """The architecture and every tensor to write, exactly those that its networks expect.

    Names outside the networks (schedule buffers, averages, ids) are left out. ModelError where the source is
    of another kind, or lacks a tensor, or holds one of another shape or one that its networks do not know.
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
    architecture = detect(shapes, source.metadata)
    require_equal(shapes, expected_shapes(architecture))
    if (found := architecture.vae.z_channels) != (wanted := architecture.unet.out_channels):
        raise ModelError(f"the VAE's latents have {found} channels, the UNet's {wanted}: they do not fit")
    parts = []
    for name, (file, stored) in origins.items():
        kind = file.tensors[stored].dtype
        if not kind.is_floating_point:
            raise ModelError(f"{show(stored)} holds {kind}, not floating-point numbers")
        parts.append(Part(name, shapes[name], dtype or kind, file, stored))
    return architecture, parts


def _vae(file: TensorFile) -> dict[str, str]:
    kind = foreign.recognize(file.shapes)
    if kind not in (None, foreign.VAE_ALONE):
        raise ModelError(f"{file.path}: no VAE of v1.x: it is {kind}")
    names = vae_names(file.tensors)
    if not names:
        raise ModelError(f"{file.path}: it holds no VAE; its tensors are {show_some(file.tensors)}")
    return names


def _averages(source: TensorFile, names: Iterable[str]) -> dict[str, tuple[TensorFile, str]]:
    """The UNet's names with their averages in the source; ModelError where these are missing or ambiguous."""
    averages = {name: ema_name(name) for name in names if name.startswith(UNET_PREFIX)}
    missing = [stored for stored in averages.values() if stored not in source.tensors]
    if missing:
        what = "no EMA weights" if len(missing) == len(averages) else f"no {show_some(missing)}"
        raise ModelError(f"the file holds {what}: convert it without --use-ema")
    if len(set(averages.values())) != len(averages):
        raise ModelError("the file's EMA names, which lack their dots, each mean several tensors")
    return {name: (source, stored) for name, stored in averages.items()}
