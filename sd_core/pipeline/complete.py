"""Checked values -> a `Request` in which nothing is open: sampler, schedule, seed, model and size."""

import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from sd_core.additions import IMAGED, OWN_VAE
from sd_core.checks import Checked, shorten
from sd_core.errors import InvalidRequest
from sd_core.fields import Record, make
from sd_core.groups import MASKED
from sd_core.nested import MAX_SIDE, MIN_SIDE, UPSCALERS, Hires, Outpaint
from sd_core.pipeline.sample import Run, options_of
from sd_core.pipeline.sizes import choose_size, enlarged, resized
from sd_core.request import Request
from sd_core.sampling.registry import SOLVERS, resolve
from sd_core.sampling.schedule import v1_schedule

RANDOM_SEEDS = 2**32
MAX_LISTED = 10
MAX_COMPARED = 100  # characters of a name that is compared with others
STRENGTH, HIRES_STRENGTH = 0.8, 0.7

# Pixels of all answers of a job whose masked part is put back into the image as it was sent.
MAX_ANSWERED = 2**25

R = TypeVar("R", bound=Request)


def find_model(name: str | None, known: Collection[str]) -> str:
    """The checkpoint that is meant by `name`, as A1111 writes it too: `name.safetensors [hash]`; None is the first.

    Raises `InvalidRequest` that lists what there is, the nearest names first.
    """
    if name is None:
        return next(iter(known))
    plain = re.sub(r"\s*\[\w*\]\s*$", "", name)
    for wanted in (name, plain, re.sub(r"\.(safetensors|ckpt)$", "", plain, flags=re.IGNORECASE)):
        for same in (str, str.casefold):
            for candidate in known:
                if same(candidate) == same(wanted):
                    return candidate
    near = get_close_matches(name[:MAX_COMPARED], known, n=MAX_LISTED)
    hint = f"did you mean {near[0]!r}? There" if near else "there"
    listed = list(dict.fromkeys([*near, *known]))
    more = f" and {len(listed) - MAX_LISTED} more" if len(listed) > MAX_LISTED else ""
    raise InvalidRequest(f"model: {shorten(name)} is not here; {hint} are: {', '.join(listed[:MAX_LISTED])}{more}")


def complete(into: type[R], values: Mapping[str, Any], model: str, native_size: int) -> R:
    """The request, of the type `into`, that a record's checked values make with the model of this name.

    `native_size` is the model's side in pixels. An image comes later, by `with_image`. Raises `InvalidRequest` for a
    sampler or a schedule that does not exist, for an option that the sampler does not have, for too many steps, or for
    hires beyond the limits of a side.
    """
    sampler, schedule = resolve(values["sampler"], values["schedule"])
    SOLVERS[sampler].with_defaults(options_of(values))
    outpaint = values["outpaint"]
    filled = {
        "sampler": sampler,
        "schedule": schedule,
        "seed": _drawn(values["seed"]),
        "variation_seed": _variation_seed(values["variation_seed"], values["variation_strength"]),
        "width": values["width"] or native_size,
        "height": values["height"] or native_size,
        "model": model,
        "image": None,
        "mask": None,
        "outpaint": None if outpaint == Outpaint() else outpaint,
        "vae": _own_or(values["vae"]),
        "loras": tuple(lora.completed for lora in values["loras"]),
        "controlnets": tuple(replace(unit, image=None) for unit in values["controlnets"]),
        "ip_adapters": tuple(replace(unit, image=None) for unit in values["ip_adapters"]),
        **_strengths(values, sampler),
    }
    request = make(into, {**values, **filled})
    _check_steps(request, has_image=values["image"] is not None)
    if request.hires is not None and values["image"] is None:
        enlarged(request.width, request.height, request.hires)
    return request


def _own_or(vae: str | None) -> str | None:
    """None if the checkpoint's own VAE is meant."""
    return None if vae is not None and vae.casefold() in map(str.casefold, OWN_VAE) else vae


def _check_steps(request: Request, *, has_image: bool) -> None:
    """Raise `InvalidRequest` if the schedule of a pass cannot have as many steps."""
    first, *later = Run.all_of(request)
    replace(first, strength=request.strength if has_image else None).sigmas(v1_schedule())
    for run in later:
        try:
            run.sigmas(v1_schedule())
        except InvalidRequest as error:
            raise InvalidRequest(f"hires.{error}") from None


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


def _drawn(seed: int | None) -> int:
    """The seed itself, or a random one for None and -1."""
    return secrets.randbelow(RANDOM_SEEDS) if seed in (None, -1) else seed


def _variation_seed(seed: int | None, strength: float) -> int | None:
    """As `_drawn`, but no number is drawn for a variation of strength 0."""
    return None if strength == 0 and seed in (None, -1) else _drawn(seed)


def unusable(checked: Checked) -> list[str]:
    """A text for each field that cannot be used beside the others."""
    values, written = checked.values, checked.written
    lacking = [name for name in MASKED if values[name] is not None and "image" not in written]
    problems = [f"{written[name]}: needs an image" for name in lacking]
    if values["outpaint"] is not None and values["resize_mode"] == "latent":
        problems.append("resize_mode: latent cannot be used with outpaint")
    is_masked = values["mask"] is not None or values["outpaint"] is not None
    for name in IMAGED:
        for index, unit in enumerate(values[name]):
            # None is among the problems already.
            if unit is not None and unit.image is None and "image" not in written:
                problems.append(f"{name}[{index}].image: is required, because the job has no image")
    for index, unit in enumerate(values["controlnets"]):
        if unit is not None and unit.preprocessor == "inpaint" and not is_masked:
            problems.append(f"controlnets[{index}].preprocessor: inpaint needs a mask or outpaint")
    return problems


def implied(checked: Checked) -> dict[str, Any]:
    """The checked values, with what a name says of other fields: `padding_mask_crop` means that only the masked part is
    repainted (diffusers)."""
    written = checked.written
    if written.get("inpaint_padding") == "padding_mask_crop" and "inpaint_area" not in written:
        return {**checked.values, "inpaint_area": "masked"}
    return checked.values


def with_image(
    request: R, image: Image.Image, mask: Image.Image | None, width: int | None, height: int | None, max_pixels: int
) -> tuple[R, list[str]]:
    """The request as image-to-image from this RGB image, and of its masked part if there is a mask; with warnings.

    Without `width` and `height` the image's own size decides, brought under `max_pixels` for all images together, at
    the size of the hires pass if there is one. If only the masked part is repainted, the image stays as it was sent and
    the request's own size is that of the part. Raises `InvalidRequest` if the image with its border, or its hires pass,
    is too large.
    """
    pixels = np.array(image, dtype=np.uint8)
    levels, warnings = (None, []) if mask is None else _fitted(mask, image.size)
    if levels is not None and request.outpaint is None and _keeps_all(levels, inverted=request.mask_invert):
        warnings.append("mask selects no pixel to repaint: the answer is the image as it was sent")
    if request.inpaint_area == "masked" and (mask is not None or request.outpaint is not None):
        sent = replace(request, image=pixels, mask=levels)
    else:
        each = _first_pass_pixels(request, max_pixels)
        size = choose_size(image.size, width, height, each)
        # Latents are resized instead, from the nearest size that can be encoded.
        is_latent = request.resize_mode == "latent"
        own = choose_size(image.size, None, None, each) if is_latent else size
        mode = "stretch" if is_latent else request.resize_mode
        levels = None if levels is None else resized(levels, own, mode)
        sent = replace(request, image=resized(pixels, own, mode), mask=levels, width=size[0], height=size[1])
    _check_grown(sent, image.size, max_pixels)
    check_hires(sent.hires, sent.generated_size, sent.num_images, max_pixels)
    if sent.hires is not None and sent.is_masked and sent.inpaint_area == "masked":
        larger = enlarged(*sent.generated_size, sent.hires)
        if larger.size != larger.covering:
            raise InvalidRequest("hires: width and height of another aspect cannot be used with inpaint_area masked")
    return sent, warnings


def _first_pass_pixels(request: Request, max_pixels: int) -> int:
    """What a first pass may have of the pixels of a job, so that a scaled hires pass is within them too."""
    hires = request.hires
    scale = hires.scale if hires is not None and hires.width is None and hires.height is None else 1.0
    return max(MIN_SIDE**2, int(max_pixels // request.num_images / scale**2))


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
    """Refuse what is too large to generate or, if a part is put back into the sent image, too large to answer."""
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
        width, height = request.generated_size
        pixels = width * height * request.num_images
        if max(width, height) > MAX_SIDE or pixels > max_pixels:
            raise InvalidRequest(
                f"outpaint: the image grows to {width}x{height}, {pixels:,} pixels with num_images; sides are at most "
                f"{MAX_SIDE} and this worker's limit is {max_pixels:,} (SD_MAX_PIXELS); width and height set the "
                "size before it grows"
            )


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
    if values["outpaint"] == Outpaint():
        warnings.append("outpaint did nothing: it adds no pixel")
    is_whole = implied(checked)["inpaint_area"] == "whole"
    if "inpaint_padding" in written and is_whole and values["inpaint_padding"] != record["inpaint_padding"].default:
        warnings.append(f"{written['inpaint_padding']} did nothing: it has no effect unless inpaint_area is masked")
    hires: Hires | None = values["hires"]
    has_own = hires is not None and hires.strength and hires.strength != values["strength"]
    if has_own and values["image"] is None and "strength" in written:
        warnings.append(f"{written['strength']} did nothing: hires has its own strength, and there is no image")
    if hires is not None and hires.cfg is not None and not values["do_scale"]:
        warnings.append("hires.cfg did nothing: do_scale is false")
    return warnings


def acts(acts_with: Collection[str], values: Mapping[str, Any]) -> bool:
    """Whether a field that acts with these fields does anything: one of them is given, or it needs none."""
    return not acts_with or any(values.get(name) is not None and values[name] is not False for name in acts_with)
