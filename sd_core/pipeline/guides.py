"""The networks of a job's `controlnets`: found in the library, read on the host, and checked against the checkpoint."""

from collections.abc import Callable, Sequence
from functools import partial

from sd_core.catalogue import Entry, Kind
from sd_core.device import DTYPES
from sd_core.errors import InvalidRequest, ModelError
from sd_core.formats.controlnet import Change, load_guide
from sd_core.models.controlnet import ControlNet
from sd_core.models.t2i_adapter import T2IAdapter
from sd_core.models.unet import UNetConfig
from sd_core.networks import Guide
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.volume import Library


def guides_of(request: Request, model: StableDiffusion, library: Library) -> Callable[[], tuple[Guide, ...]] | None:
    """How to read the networks that a request names, on a thread that may block; None if it names none.

    Raises `InvalidRequest` for a name that no file has; the function does for a file that cannot be used.
    """
    if not request.controlnets:
        return None
    entries = [
        library.find(Kind.CONTROLNET, unit.model, f"controlnets[{index}].model")
        for index, unit in enumerate(request.controlnets)
    ]
    return partial(_read, entries, model, library)


def _read(entries: Sequence[Entry], model: StableDiffusion, library: Library) -> tuple[Guide, ...]:
    guides = []
    for index, entry in enumerate(entries):
        guide = _guide(entry, model, library)
        if (reason := _misfit(guide, model.networks.unet.config)) is not None:
            raise InvalidRequest(f"controlnets[{index}].model: {entry.name!r} cannot be used with this model: {reason}")
        guides.append(guide)
    return tuple(guides)


def _guide(entry: Entry, model: StableDiffusion, library: Library) -> ControlNet | T2IAdapter:
    device, dtype = model.device, DTYPES[model.info.dtype]
    read = library.get(entry, partial(load_guide, device=device, dtype=dtype), ("guide", device, dtype))
    if not isinstance(read, Change):
        return read
    try:
        # The network belongs to this checkpoint, and is made again if the file has changed.
        made = partial(read.of, model.networks.unet, model.unet_key)
        return library.derived((Kind.CONTROLNET, entry.path, model.unet_key), read.key, made)
    except ModelError as error:
        raise InvalidRequest(f"the {entry.kind} {entry.file_name!r} cannot be used: {error}") from error


def _misfit(guide: ControlNet | T2IAdapter, unet: UNetConfig) -> str | None:
    """Why what a network adds does not fit a UNet; None if it fits."""
    if guide.config.channels != unet.channels:
        return f"it was made for a UNet of the widths {guide.config.channels}, and the model's has {unet.channels}"
    if isinstance(guide, T2IAdapter):
        return None
    blocks, width = guide.config.num_res_blocks, guide.config.context_dim
    if blocks != unet.num_res_blocks:
        return f"it has {blocks} residual blocks a level, and the model's UNet {unet.num_res_blocks}"
    if width != unet.context_dim:
        return f"it reads prompts of the width {width}, and the model's have {unet.context_dim}"
    return None
