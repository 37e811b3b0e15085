"""The units of sd-webui-controlnet, in `alwayson_scripts.controlnet` of A1111's bodies -> a job's `controlnets`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sd_core.checks import shorten
from sd_core.errors import InvalidRequest

SCRIPT = "controlnet"
UNITS = "alwayson_scripts.controlnet.args"
MAX_SHOWN = 64  # characters of a name that a warning shows
MAX_NAMED = 20  # names that a warning lists

# Names that the fields have too; so are the values, as the fields' other spellings.
FIELDS = frozenset({
    "module", "model", "weight", "resize_mode", "guidance_start", "guidance_end", "control_mode", "hr_option",
    "threshold_a", "threshold_b",
})  # fmt: skip
THRESHOLDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "canny": ("threshold_a", "threshold_b"),
        "threshold": ("threshold_a",),
        "scribble_xdog": ("threshold_a",),
        "blur_gaussian": ("threshold_a",),
        "tile_resample": ("threshold_a",),
    }
)
"""The thresholds that their preprocessors use; clients send both with every one."""

# What never changes an image here: maps are made at the generated size, memory is the engine's concern.
IGNORED = frozenset({
    "enabled", "is_ui", "input_mode", "use_preview_as_input", "batch_images", "output_dir", "loopback", "low_vram",
    "lowvram", "pixel_perfect", "processor_res", "save_detected_map", "inpaint_crop_input_image", "generated_image",
    "batch_image_dir", "batch_mask_dir", "batch_mask_gallery", "batch_modifiers", "batch_image_files",
    "batch_keyframe_idx",
})  # fmt: skip
NOTHING: tuple[Any, ...] = (None, "", [], {}, "Unknown", False)


@dataclass(frozen=True)
class Units:
    """A job's `controlnets`, and warnings."""

    items: list[dict[str, Any]]
    warnings: list[str]


def units_of(script: Any) -> Units:
    """The units of the script that are enabled. Raises `InvalidRequest` if it is not as the extension reads it."""
    args = script.get("args", []) if isinstance(script, Mapping) else script
    if not isinstance(args, list):
        raise InvalidRequest(f"{UNITS}: {shorten(args)} is not a list of units")
    items: list[dict[str, Any]] = []
    warnings: list[str] = []
    unknown: dict[str, None] = {}
    for index, unit in enumerate(args):
        if unit is None or isinstance(unit, bool):
            continue  # the extension's own switches come first in some clients' lists
        if not isinstance(unit, Mapping):
            raise InvalidRequest(f"{UNITS}[{index}]: {shorten(unit)} is not an object of fields")
        if unit.get("enabled", True) is False:
            continue
        if unit.get("model") in (None, "", "None"):
            warnings.append(f"{UNITS}[{index}] did nothing: it names no model")
            continue
        items.append(_unit(unit, unknown))
    if unknown:
        warnings.append(f"{UNITS}: not understood here: {', '.join(list(unknown)[:MAX_NAMED])}")
    return Units(items, warnings)


def _unit(unit: Mapping[Any, Any], unknown: dict[str, None]) -> dict[str, Any]:
    """One unit; names that ask for something that is not there are added to `unknown`."""
    item: dict[str, Any] = {}
    thresholds = THRESHOLDS.get(str(unit.get("module")), ())
    for name, value in unit.items():
        if name in FIELDS:
            is_threshold = name in ("threshold_a", "threshold_b")
            if value is None or (is_threshold and (name not in thresholds or value == -1)):
                continue
            item[name] = value
        elif name in ("image", "input_image"):
            _take_image(item, value, unknown)
        elif name == "guessmode":
            item |= {"control_mode": 2} if value is True else {}
        elif name not in IGNORED and value not in NOTHING:
            unknown[str(name)[:MAX_SHOWN]] = None
    return item


def _take_image(item: dict[str, Any], value: Any, unknown: dict[str, None]) -> None:
    """The image as base64, or of an object with a mask beside it."""
    if isinstance(value, Mapping):
        if value.get("mask") not in NOTHING:
            unknown["image.mask"] = None
        value = value.get("image")
    if value not in (None, ""):
        item["image"] = value
