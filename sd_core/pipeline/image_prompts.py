"""The image prompts of a job: adapters and encoders from files, images as an encoder takes them, and when they act."""

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd_core.additions import IPAdapter as Unit
from sd_core.catalogue import Entry, Kind
from sd_core.device import upload
from sd_core.errors import InvalidRequest, ModelError
from sd_core.formats.image_encoder import describe_image_encoder, load_image_encoder, named_encoder
from sd_core.formats.ip_adapter import load_ip_adapter
from sd_core.models.image_encoder import ImageEncoderConfig
from sd_core.models.ip_adapter import ImageTokenizer, IPAdapter, attention_widths
from sd_core.pipeline.images import digest
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.span import acts
from sd_core.request import Request
from sd_core.volume import Library
from sd_core.work import Context, ImagePrompt, ImageWork

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the images that CLIP was trained on, by channel, in [0, 1]."""

R = TypeVar("R", bound=Request)


@dataclass(frozen=True, eq=False)
class Reference:
    """An image of a job, what makes tokens of it, and how strongly and in which part of the steps it acts."""

    network: ImageTokenizer
    key: Hashable
    pixels: Tensor
    unit: Unit

    def encoded(self) -> Generator[ImageWork, Context, "Shown"]:
        """Ask for its tokens, and for those of no image."""
        image = yield ImageWork(self.network, self.key, self.pixels)
        nothing = yield ImageWork(self.network, None, None)
        return Shown(self.network.adapter, image, nothing, self.unit)


@dataclass(frozen=True, eq=False)
class Shown:
    """The tokens of an image prompt, and those that take their place in rows of negative prompts."""

    adapter: IPAdapter
    image: Context
    nothing: Context
    unit: Unit

    def acts(self, step: int, steps: int) -> bool:
        """Whether it acts at step `step` of `steps`."""
        return acts(step, steps, self.unit.start, self.unit.end)

    def on(self, rows: int, negatives: int) -> tuple[ImagePrompt, ...]:
        """For so many rows, the first `negatives` of which belong to the negative prompt."""
        image = ImagePrompt(self.adapter, self.image, self.unit.weight)
        if not negatives:
            return (image,)
        nothing = ImagePrompt(self.adapter, self.nothing, self.unit.weight, tuple(range(negatives)))
        return nothing, replace(image, rows=tuple(range(negatives, rows)))


def with_references(request: R, images: Sequence[Image.Image | None]) -> R:
    """The request whose `ip_adapters` have these RGB images, None for one that reads the job's own.

    The job's own image is there already.
    """
    units = [
        replace(unit, image=request.image if image is None else np.array(image, dtype=np.uint8))
        for unit, image in zip(request.ip_adapters, images, strict=True)
    ]
    return replace(request, ip_adapters=tuple(units))


def shown_of(references: Sequence[Reference]) -> Generator[ImageWork, Context, tuple[Shown, ...]]:
    """Encode the images of a job, one after another."""
    shown = []
    for reference in references:
        shown.append((yield from reference.encoded()))
    return tuple(shown)


def references_of(
    request: Request, model: StableDiffusion, library: Library
) -> Callable[[], tuple[Reference, ...]] | None:
    """How to read what a job's image prompts need, on a thread that may block; None without any.

    Raises `InvalidRequest` that names the field if a file is not there.
    """
    units = [(index, unit) for index, unit in enumerate(request.ip_adapters) if unit.weight]
    if not units:
        return None
    adapters = [library.find(Kind.IP_ADAPTER, unit.model, f"ip_adapters[{index}].model") for index, unit in units]
    encoders = library.entries(Kind.CLIP_VISION)
    if not encoders:
        raise InvalidRequest(
            "ip_adapters: an image encoder is needed, and there is none on this worker; CLIP ViT-H/14 as a file in "
            "clip_vision/ serves most adapters"
        )
    loads = [
        partial(_reference, unit, f"ip_adapters[{index}].model", entry, encoders, model, library)
        for (index, unit), entry in zip(units, adapters, strict=True)
    ]
    return lambda: tuple(load() for load in loads)


def encoder_pixels(image: np.ndarray, side: int) -> Tensor:
    """uint8 (H, W, 3) -> float32 (1, 3, side, side), normalized as CLIP's images are.

    Resized to the shorter side, bicubic, and cut around the centre, as transformers' `CLIPImageProcessor` does.
    """
    picture = Image.fromarray(image)
    shorter, longer = sorted(picture.size)
    long_side = int(side * longer / shorter)
    size = (side, long_side) if picture.width <= picture.height else (long_side, side)
    resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    top, left = ((length - side) // 2 for length in resized.shape[:2])
    levels = resized[top : top + side, left : left + side] / 255
    normalized = (levels - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(2, 0, 1)))[None]


def _reference(
    unit: Unit, field: str, file: Entry, encoders: Sequence[Entry], model: StableDiffusion, library: Library
) -> Reference:
    """Read an adapter and the encoder that it needs, and prepare its image."""
    # A CPU reads an image once a job: float32 takes it least time, and packing would take longer than it saves.
    dtype = torch.float32 if model.device.type == "cpu" else model.dtype
    about = model.device, dtype
    read = partial(load_ip_adapter, device=model.device, dtype=dtype, key=(file.path, file.stamp))
    adapter = library.get(file, read, about)
    unet = model.networks.unet
    if (adapter.config.attentions, adapter.config.context_dim) != (attention_widths(unet), unet.config.context_dim):
        raise InvalidRequest(f"{field}: {file.name} is for a UNet of another size than that of {model.info.name}")
    chosen = _encoder_for(adapter, f"{field}: {file.name}", encoders)
    read_encoder = partial(load_image_encoder, device=model.device, dtype=dtype, key=(chosen.path, chosen.stamp))
    encoder = library.get(chosen, read_encoder, about)
    assert unit.image is not None  # a job without any image is refused
    pixels = upload(encoder_pixels(unit.image, encoder.config.side), model.device)
    return Reference(ImageTokenizer(encoder, adapter), digest(unit.image), pixels, unit)


def _encoder_for(adapter: IPAdapter, named: str, encoders: Sequence[Entry]) -> Entry:
    """The first encoder that fits. Raises `InvalidRequest` that says which one is needed, and what there is."""
    found = []
    for entry in encoders:
        config = _described(entry)
        if config is not None and adapter.config.fits(config):
            return entry
        what = "cannot be read" if config is None else named_encoder(config.embedding, config.width)
        found.append(f"{entry.file_name} ({what})")
    width = adapter.config.image_width
    needed = named_encoder(*((None, width) if adapter.config.reads_hidden else (width, None)))
    raise InvalidRequest(f"{named} needs {needed}; clip_vision/ has {', '.join(found)}")


def _described(entry: Entry) -> ImageEncoderConfig | None:
    try:
        return describe_image_encoder(entry.path)
    except (ModelError, OSError):
        return None
