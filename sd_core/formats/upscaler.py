"""ESRGAN-type files -> an upscaler: the layouts of its authors' old and new code, of BSRGAN's and of Real-ESRGAN's."""

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

import torch

from sd_core.errors import ModelError
from sd_core.formats.alone import Part, Parts, Shapes, read_network
from sd_core.formats.keys import show_some
from sd_core.models.rrdbnet import RRDBNet, RRDBNetConfig

WRAPPERS = ("params_ema.", "params.", "")
"""Where files hold the weights, the best first."""

MAX_BLOCKS, MAX_WIDTH, MAX_DOUBLINGS = 64, 512, 3

_RENAMED = (
    (re.compile(r"^RRDB_trunk\.(\d+)\.RDB(\d)\."), r"body.\1.rdb\2."),
    (re.compile(r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\."), r"body.\1.rdb\2.conv\3."),
    (re.compile(r"^trunk_conv\."), "conv_body."),
    (re.compile(r"^upconv(\d)\."), r"conv_up\1."),
    (re.compile(r"^HRconv\."), "conv_hr."),
    (re.compile(r"^model\.0\."), "conv_first."),
    (re.compile(r"^model\.1\.sub\.\d+\.(weight|bias)$"), r"conv_body.\1"),
)


def load_upscaler(path: Path, device: torch.device) -> RRDBNet:
    """The network of a `.pth` or `.safetensors` file, in float32 on a device, in evaluation mode.

    A `.pth` is read by the allow-list reader, which runs nothing of it. ModelError, which names the file, if it is
    damaged or not of ESRGAN's architecture.
    """
    return read_network(path, device, torch.float32, understand_upscaler, packed=True)


def understand_upscaler(shapes: Shapes) -> tuple[partial[RRDBNet], Parts]:
    """An `Understand`. ModelError as above."""
    parts = {name: Part(stored) for name, stored in upscaler_names(shapes).items()}
    return partial(RRDBNet, config_of({name: part.shape(shapes) for name, part in parts.items()})), parts


def upscaler_names(stored: Collection[str]) -> dict[str, str]:
    """Name in `RRDBNet` -> name in the file. ModelError if they are not an ESRGAN's."""
    prefix = next(prefix for prefix in WRAPPERS if any(name.startswith(prefix) for name in stored))
    own = {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}
    tail = _tail(own)
    renamed = {_renamed(name, tail): stored_name for name, stored_name in own.items()}
    if not {"conv_first.weight", "conv_last.weight", "conv_body.weight"} <= renamed.keys():
        raise ModelError(f"not an ESRGAN upscaler; its {len(stored)} tensors are {show_some(stored)}")
    return renamed


def config_of(shapes: Shapes) -> RRDBNetConfig:
    """The architecture that tensors of these shapes, by name in `RRDBNet`, belong to. ModelError if there is none."""
    blocks = {int(found[1]) for name in shapes if (found := re.match(r"body\.(\d{1,4})\.", name))}
    doublings = sum(re.fullmatch(r"conv_up\d\.weight", name) is not None for name in shapes)
    first, last = shapes["conv_first.weight"], shapes["conv_last.weight"]
    inner = shapes.get("body.0.rdb1.conv1.weight", ())
    if len(first) != 4 or len(last) != 4 or len(inner) != 4:
        raise ModelError("not an ESRGAN upscaler: its convolutions have other shapes")
    shuffle = {3: 1, 12: 2, 48: 4}.get(first[1], 0)
    config = RRDBNetConfig(features=first[0], growth=inner[0], blocks=len(blocks), doublings=doublings, shuffle=shuffle)
    sound = max(config.features, config.growth) <= MAX_WIDTH and len(blocks) <= MAX_BLOCKS
    if not shuffle or last[0] != 3 or not sound or doublings > MAX_DOUBLINGS or 2**doublings < shuffle:
        raise ModelError(f"an upscaler of an architecture that is not supported: {config}")
    return config


def _tail(names: Collection[str]) -> list[str]:
    """In the old layout, the places after the blocks, in order: one for each doubling, then the last two."""
    places = {int(found[1]) for name in names if (found := re.match(r"model\.(\d{1,3})\.(?:weight|bias)$", name))}
    return [f"model.{place}." for place in sorted(places - {0, 1})]


def _renamed(name: str, tail: list[str]) -> str:
    for index, place in enumerate(tail):
        if name.startswith(place):
            new = {len(tail) - 2: "conv_hr.", len(tail) - 1: "conv_last."}.get(index, f"conv_up{index + 1}.")
            return new + name.removeprefix(place)
    for pattern, new in _RENAMED:
        if pattern.search(name):
            return pattern.sub(new, name)
    return name
