"""Checked values -> a `Request` in which nothing is open: sampler, schedule, seed, model and size."""

import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, TypeVar

from PIL import Image

from sd_core.checks import Checked, shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Record, make
from sd_core.nested import MIN_SIDE, UPSCALERS, Hires
from sd_core.pipeline.sizes import choose_size, enlarged, resized
from sd_core.request import Request
from sd_core.sampling.registry import resolve

RANDOM_SEEDS = 2**32
MAX_LISTED = 10
STRENGTH, HIRES_STRENGTH = 0.8, 0.7

R = TypeVar("R", bound=Request)


def find_model(name: str | None, known: Collection[str]) -> str:
    """The loaded model that is meant by `name`, as A1111 writes it too: `name.safetensors [hash]`; None is the first.

    Raises `InvalidRequest` with the nearest name, or with all of them if they are few.
    """
    if name is None:
        return next(iter(known))
    plain = re.sub(r"\s*\[\w*\]\s*$", "", name)
    for wanted in (name, plain, re.sub(r"\.(safetensors|ckpt)$", "", plain, flags=re.IGNORECASE)):
        for same in (str, str.casefold):
            for candidate in known:
                if same(candidate) == same(wanted):
                    return candidate
    near = get_close_matches(name, known, n=1)
    nearest = f"; did you mean {near[0]!r}?" if near else ""
    listed = f"; loaded: {', '.join(known)}" if len(known) <= MAX_LISTED else ""
    raise InvalidRequest(f"model: {shorten(name)} is not loaded here{nearest}{listed}")


def complete(into: type[R], values: Mapping[str, Any], model: str, native_size: int) -> R:
    """The request, of the type `into`, that a record's checked values make with the model of this name.

    `native_size` is the model's side in pixels. An image comes later, by `with_image`. Raises `InvalidRequest` for a
    sampler or a schedule that does not exist, and for hires beyond the limits of a side.
    """
    sampler, schedule = resolve(values["sampler"], values["schedule"])
    seed = values["seed"]
    filled = {
        "sampler": sampler,
        "schedule": schedule,
        "seed": secrets.randbelow(RANDOM_SEEDS) if seed in (None, -1) else seed,
        "width": values["width"] or native_size,
        "height": values["height"] or native_size,
        "model": model,
        "image": None,
        **_strengths(values, sampler),
    }
    request = make(into, {**values, **filled})
    if request.hires is not None and values["image"] is None:
        enlarged(request.width, request.height, request.hires)
    return request


def _strengths(values: Mapping[str, Any], sampler: str) -> dict[str, Any]:
    """The job's `hires`, in which nothing is open that is not the job's own, and its `strength`."""
    hires: Hires | None = values["hires"]
    strength = values["strength"]
    if hires is None:
        return {"strength": strength or STRENGTH}
    own = hires.strength or (strength if values["image"] is None else None) or HIRES_STRENGTH
    names = {label.casefold(): name for name, label in UPSCALERS.items()} | {"none": "lanczos"}
    folded = hires.upscaler.casefold()
    upscaler = names.get(folded, folded if folded in UPSCALERS else hires.upscaler)
    filled = replace(hires, strength=own, upscaler=upscaler)
    if hires.sampler is not None or hires.schedule is not None:
        try:
            second, schedule = resolve(hires.sampler or sampler, hires.schedule)
        except InvalidRequest as error:
            raise InvalidRequest(f"hires.{error}") from None
        filled = replace(filled, sampler=second, schedule=schedule)
    return {"strength": own if values["image"] is None else strength or STRENGTH, "hires": filled}


def with_image(request: R, image: Image.Image, width: int | None, height: int | None, max_pixels: int) -> R:
    """The request as image-to-image from this RGB image, resized.

    Without `width` and `height` the image's own size decides, brought under `max_pixels` for all images together, at
    the size of the hires pass if there is one. Raises `InvalidRequest` for hires beyond the limits.
    """
    hires, pixels = request.hires, max_pixels // request.num_images
    scale = hires.scale if hires is not None and hires.width is None and hires.height is None else 1.0
    size = choose_size(image.size, width, height, max(MIN_SIDE**2, int(pixels / scale**2)))
    check_hires(hires, size, request.num_images, max_pixels)
    return replace(request, image=resized(image, size), width=size[0], height=size[1])


def check_hires(hires: Hires | None, size: tuple[int, int], count: int, max_pixels: int) -> None:
    """Raise `InvalidRequest` if the hires pass of `count` images of this size exceeds a job's limits."""
    if hires is None:
        return
    width, height = enlarged(*size, hires).size
    pixels = width * height * count
    if pixels > max_pixels:
        limit = f"over this worker's limit of {max_pixels:,} (SD_MAX_PIXELS)"
        raise InvalidRequest(
            f"hires: width x height x num_images: {width} x {height} x {count} is {pixels:,} pixels, {limit}"
        )


def without_effect(record: Record, checked: Checked) -> list[str]:
    """A warning for each field that was given and does nothing beside the other values."""
    values, written = checked.values, checked.written
    warnings = []
    for field in record:
        if field.name in written and not acts(field.acts_with, values):
            needed = " or ".join(field.acts_with)
            warnings.append(f"{written[field.name]} did nothing: it has no effect without {needed}")
    if "scale" in written and not values["do_scale"]:
        warnings.append(f"{written['scale']} did nothing: do_scale is false")
    if values["negative_prompt"] and (not values["do_scale"] or values["scale"] <= 1):
        reason = "it has no effect without a scale over 1" if values["do_scale"] else "do_scale is false"
        warnings.append(f"negative_prompt did nothing: {reason}")
    hires: Hires | None = values["hires"]
    if hires is not None and hires.strength and values["image"] is None and "strength" in written:
        warnings.append(f"{written['strength']} did nothing: hires has its own strength, and there is no image")
    if hires is not None and hires.cfg is not None and not values["do_scale"]:
        warnings.append("hires.cfg did nothing: do_scale is false")
    return warnings


def acts(acts_with: Collection[str], values: Mapping[str, Any]) -> bool:
    """Whether a field that acts with these fields does anything: one of them is given, or it needs none."""
    return not acts_with or any(values.get(name) is not None and values[name] is not False for name in acts_with)
