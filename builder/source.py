"""What a conversion reads: which tensor of which source file becomes which tensor of the destination."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats import foreign
from sd_core.formats.check import expected_shapes, require_equal
from sd_core.formats.detect import Contents, detect_contents
from sd_core.formats.files import TensorFile
from sd_core.formats.keys import UNET_PREFIX, VAE_PREFIX, ema_name, show, show_some
from sd_core.formats.origins import Origin, Origins, origins_of, shapes_of
from sd_core.formats.prediction import beside, declare, is_marker
from sd_core.formats.vae import vae_origins

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Source:
    """A checkpoint to convert: its tensors by canonical name, and what it declares.

    `files` are all files that it consists of, `markers` the shapes of the tensors whose presence declares something.
    """

    path: Path
    files: tuple[TensorFile, ...]
    origins: Origins
    metadata: Mapping[str, str]
    markers: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, file: TensorFile) -> "Source":
        """A checkpoint of one file. ModelError if it is of another kind."""
        foreign.refuse(file.shapes)
        markers = {name: shape for name, shape in file.shapes.items() if is_marker(name)}
        return cls(file.path, (file,), origins_of(file), {**beside(file.path), **file.metadata}, markers)


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
    origin: Origin
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.origin.shape

    @property
    def size(self) -> int:
        """Size in the destination, in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor in its new dtype. ModelError if it contains NaN or infinities, before or after the cast."""
        tensor = self.origin.read()
        cast = tensor.to(self.dtype)
        if not _finite(cast):
            stored = show(self.origin.stored)
            if _finite(tensor):
                raise ModelError(
                    f"{stored} holds numbers up to {tensor.double().abs().max().item():.3g}, "
                    f"beyond the range of {dtype_name([self.dtype])}: convert to bf16 or fp32"
                )
            raise ModelError(f"{stored} in {self.origin.file.path} holds NaN or infinities: it is damaged")
        return cast


def plan(
    source: Source,
    vae: TensorFile | None,
    dtype: torch.dtype | None,
    *,
    use_ema: bool,
    prediction_type: str | None,
    is_partial: bool = False,
) -> tuple[Contents, list[Part]]:
    """What the destination holds and every tensor to write, exactly those that its networks expect.

    Names outside the networks (schedule buffers, averages, ids) are left out. Without `dtype`, each tensor keeps its
    stored dtype, and those with a scale become fp16. `prediction_type` replaces what the source declares. ModelError
    if the source lacks a tensor, or holds one of a wrong shape or an unknown name; or if it lacks the text encoder or
    the VAE, unless it may be `is_partial`.
    """
    origins = dict(source.origins)
    if vae is not None:
        origins = {name: origin for name, origin in origins.items() if not name.startswith(VAE_PREFIX)}
        try:
            origins |= vae_origins(vae)
        except ModelError as error:
            raise ModelError(f"{vae.path}: {error}") from None
    if use_ema:
        origins |= _averages(source, origins)
    shapes = shapes_of(origins)
    markers, metadata = source.markers, source.metadata
    if prediction_type is not None:
        markers, metadata = declare(prediction_type, markers, metadata)
    contents = detect_contents({**shapes, **markers}, metadata)
    if not is_partial:
        contents.completed()
    require_equal(shapes, expected_shapes(contents))
    wanted = contents.unet.out_channels
    if contents.vae is not None and contents.vae.z_channels != wanted:
        raise ModelError(
            f"the VAE's latents have {contents.vae.z_channels} channels, the UNet's {wanted}: they do not fit"
        )
    return contents, [Part(name, origin, dtype or _kept(origin)) for name, origin in origins.items()]


def _kept(origin: Origin) -> torch.dtype:
    """The dtype of a tensor that keeps its own. Eight bits times a scale have the precision of eight bits."""
    return origin.dtype if origin.scale is None else torch.float16


def _averages(source: Source, names: Iterable[str]) -> Origins:
    """The source's moving average of each UNet tensor in `names`. ModelError if one is missing or ambiguous."""
    averages = {name: ema_name(name) for name in names if name.startswith(UNET_PREFIX)}
    stored_in = {stored: file for file in source.files for stored in file.tensors}
    missing = [stored for stored in averages.values() if stored not in stored_in]
    if missing:
        what = "no EMA weights" if len(missing) == len(averages) else f"no {show_some(missing)}"
        raise ModelError(f"the file holds {what}: convert it without --use-ema")
    if len(set(averages.values())) != len(averages):
        raise ModelError("the file's EMA names are ambiguous: without dots, one stands for several tensors")
    return {name: Origin.of(stored_in[stored], stored) for name, stored in averages.items()}
