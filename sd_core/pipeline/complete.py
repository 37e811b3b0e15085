"""Checked values -> a `Request` in which nothing is open: sampler, schedule, seed, model and size."""

import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from sd_core.checks import Checked, shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Record, make
from sd_core.pipeline.sizes import choose_size, resized
from sd_core.request import MASKED, MAX_SIDE, Outpaint, Request
from sd_core.sampling.registry import resolve

RANDOM_SEEDS = 2**32
MAX_LISTED = 10

# Pixels of all answers of a job whose masked part is put back into the image as it was sent.
MAX_ANSWERED = 2**25

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
    sampler or a schedule that does not exist.
    """
    sampler, schedule = resolve(values["sampler"], values["schedule"])
    outpaint = values["outpaint"]
    seed = values["seed"]
    filled = {
        "sampler": sampler,
        "schedule": schedule,
        "seed": secrets.randbelow(RANDOM_SEEDS) if seed in (None, -1) else seed,
        "width": values["width"] or native_size,
        "height": values["height"] or native_size,
        "model": model,
        "image": None,
        "mask": None,
        "outpaint": None if outpaint == Outpaint() else outpaint,
    }
    return make(into, {**values, **filled})


def unusable(checked: Checked) -> list[str]:
    """A text for each field that cannot be used beside the others."""
    values, written = checked.values, checked.written
    lacking = [name for name in MASKED if values[name] is not None and "image" not in written]
    problems = [f"{written[name]}: needs an image" for name in lacking]
    if values["outpaint"] is not None and values["resize_mode"] == "latent":
        problems.append("resize_mode: latent cannot be used with outpaint")
    return problems


def implied(checked: Checked) -> dict[str, Any]:
    """The checked values, with what a name says of other fields: `padding_mask_crop` means that only the masked part is
    drawn (diffusers)."""
    written = checked.written
    if written.get("inpaint_padding") == "padding_mask_crop" and "inpaint_area" not in written:
        return {**checked.values, "inpaint_area": "masked"}
    return checked.values


def with_image(
    request: R, image: Image.Image, mask: Image.Image | None, width: int | None, height: int | None, max_pixels: int
) -> tuple[R, list[str]]:
    """The request as image-to-image from this RGB image, and of its masked part if there is a mask; with warnings.

    Without `width` and `height` the image's own size decides, brought under `max_pixels` for all images together. If
    only the masked part is drawn, the image stays as it was sent and the request's own size is that of the part.
    Raises `InvalidRequest` if the image with its border is too large.
    """
    pixels = np.array(image, dtype=np.uint8)
    levels, warnings = (None, []) if mask is None else _fitted(mask, image.size)
    if levels is not None and request.outpaint is None and _keeps_all(levels, inverted=request.mask_invert):
        warnings.append("mask selects no pixel to repaint: the answer is the image as it was sent")
    if request.inpaint_area == "masked" and (mask is not None or request.outpaint is not None):
        sent = replace(request, image=pixels, mask=levels)
    else:
        each = max_pixels // request.num_images
        size = choose_size(image.size, width, height, each)
        # Latents are resized instead, from the nearest size that can be encoded.
        is_latent = request.resize_mode == "latent"
        own = choose_size(image.size, None, None, each) if is_latent else size
        mode = "stretch" if is_latent else request.resize_mode
        levels = None if levels is None else resized(levels, own, mode)
        sent = replace(request, image=resized(pixels, own, mode), mask=levels, width=size[0], height=size[1])
    _check_grown(sent, image.size, max_pixels)
    return sent, warnings


def _fitted(mask: Image.Image, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """The mask as uint8 (height, width) at the image's size, with a warning if it had another."""
    levels = np.array(mask.convert("L"))
    if mask.size == size:
        return levels, []
    sizes = "{} x {} pixels to {} x {}, the image's size".format(*mask.size, *size)
    return resized(levels, size), [f"mask was resized from {sizes}"]


def _keeps_all(mask: np.ndarray, *, inverted: bool) -> bool:
    return bool((mask == 255).all() if inverted else not mask.any())


def _check_grown(request: Request, own: tuple[int, int], max_pixels: int) -> None:
    """Refuse what is too large to draw or, where a part is put back into the sent image, too large to answer."""
    border = request.outpaint or Outpaint()
    if request.is_masked and request.inpaint_area == "masked":
        width, height = own[0] + border.left + border.right, own[1] + border.top + border.bottom
        pixels = width * height * request.num_images
        if pixels > MAX_ANSWERED:
            raise InvalidRequest(
                f"inpaint_area: masked answers {request.num_images} x {width}x{height}, the sent image's size: "
                f"{pixels:,} pixels, over the limit of {MAX_ANSWERED:,}"
            )
    elif request.outpaint is not None:
        width, height = request.drawn_size
        pixels = width * height * request.num_images
        if max(width, height) > MAX_SIDE or pixels > max_pixels:
            raise InvalidRequest(
                f"outpaint: the image grows to {width}x{height}, {pixels:,} pixels with num_images; sides are at most "
                f"{MAX_SIDE} and this worker's limit is {max_pixels:,} (SD_MAX_PIXELS); width and height set the "
                "size before it grows"
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
    if values["outpaint"] == Outpaint():
        warnings.append("outpaint did nothing: it adds no pixel")
    is_whole = implied(checked)["inpaint_area"] == "whole"
    if "inpaint_padding" in written and is_whole and values["inpaint_padding"] != record["inpaint_padding"].default:
        warnings.append(f"{written['inpaint_padding']} did nothing: it has no effect unless inpaint_area is masked")
    return warnings


def acts(acts_with: Collection[str], values: Mapping[str, Any]) -> bool:
    """Whether a field that acts with these fields does anything: one of them is given, or it needs none."""
    return not acts_with or any(values.get(name) is not None and values[name] is not False for name in acts_with)
