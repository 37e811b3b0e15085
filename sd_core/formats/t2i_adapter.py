"""Files of T2I-Adapters, full and light, in their authors' and diffusers' layout."""

import re
from collections.abc import Collection, Mapping

from sd_core.errors import ModelError
from sd_core.formats.keys import show_some
from sd_core.models.t2i_adapter import DOWNSCALE, LIGHT_PART, T2IAdapterConfig

MAX_WIDTH, MAX_BLOCKS, MAX_LEVELS = 2**13, 16, 8

_FULL = re.compile(r"body\.(\d{1,2})\.(?:resnets\.(\d{1,2})\.)?(in_conv|block1|block2)\.(weight|bias)")
_LIGHT = re.compile(r"body\.(\d{1,2})\.(?:resnets|body)\.(\d{1,2})\.(block1|block2)\.(weight|bias)")

Shapes = Mapping[str, tuple[int, ...]]


def adapter_names(stored: Collection[str]) -> dict[str, str]:
    """Name in `T2IAdapter` -> name in the file."""
    bare = {name.removeprefix("adapter."): name for name in stored}
    if "conv_in.weight" in bare:
        # diffusers' levels hold blocks that their authors' files number through.
        blocks = 1 + max((int(found[2]) for name in bare if (found := _FULL.fullmatch(name)) and found[2]), default=0)
        return {_full_name(name, blocks): stored_name for name, stored_name in bare.items()}
    return {_LIGHT.sub(r"body.\1.body.\2.\3.\4", name): stored_name for name, stored_name in bare.items()}


def _full_name(name: str, blocks: int) -> str:
    found = _FULL.fullmatch(name)
    if found is None or (found[2] is None and blocks == 1):
        return name
    return f"body.{blocks * int(found[1]) + int(found[2] or 0)}.{found[3]}.{found[4]}"


def adapter_config(shapes: Shapes) -> T2IAdapterConfig:
    """The architecture of tensors of these shapes, by their names in `T2IAdapter`. ModelError if there is none."""
    is_light = "conv_in.weight" not in shapes
    entries = {int(found[1]) for name in shapes if (found := re.match(r"body\.(\d{1,3})\.", name))}
    count = len(entries)
    if not entries or entries != set(range(count)):
        raise ModelError(f"not a T2I-Adapter of v1.x; its {len(shapes)} tensors are {show_some(shapes)}")
    if is_light:
        channels = tuple(_width(shapes, f"body.{level}.out_conv.weight") for level in range(count))
        blocks = {int(found[2]) for name in shapes if (found := _LIGHT.fullmatch(name))}
        taken = _width(shapes, "body.0.in_conv.weight", 1)
        config = T2IAdapterConfig(taken // DOWNSCALE**2, channels, len(blocks), is_light=True)
        sound = all(width % LIGHT_PART == 0 for width in channels)
    else:
        starts = [0, *(index for index in range(1, count) if f"body.{index}.in_conv.weight" in shapes)]
        # A level of the same width as the one before has no layer that shows its start.
        levels = 4 if len(starts) < 4 and count % 4 == 0 else len(starts)
        blocks_a_level = count // levels
        channels = tuple(_width(shapes, f"body.{level * blocks_a_level}.block1.weight") for level in range(levels))
        taken = _width(shapes, "conv_in.weight", 1)
        kernel = shapes.get("body.0.block2.weight", (0, 0, 0))[-1]
        config = T2IAdapterConfig(taken // DOWNSCALE**2, channels, blocks_a_level, kernel)
        sound = kernel % 2 == 1 and 0 < kernel <= 7
    if not sound or config.blocks > MAX_BLOCKS or len(channels) > MAX_LEVELS or max(channels) > MAX_WIDTH:
        raise ModelError(f"a T2I-Adapter of an architecture that is not supported: {config}")
    if config.hint_channels not in (1, 3) or taken % DOWNSCALE**2:
        raise ModelError(f"a T2I-Adapter that takes {taken} channels of a hint, not 64 or 192")
    return config


def _width(shapes: Shapes, name: str, axis: int = 0) -> int:
    shape = shapes.get(name, ())
    if len(shape) != 4:
        raise ModelError(f"not a T2I-Adapter of v1.x: it lacks {name}, or that has another shape")
    return shape[axis]
