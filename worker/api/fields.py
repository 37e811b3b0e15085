"""The fields of a job: their names, types and limits, and the words for each way of being wrong."""

import difflib
import functools
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sd_core.request import MAX_SEED

OUTPUT_FORMATS = ("png", "jpeg", "webp")
SMALLEST_SIDE, LARGEST_SIDE = 64, 2048

ALIASES = {
    "num_inference_steps": "steps",
    "guidance_scale": "scale",
    "cfg_scale": "scale",
    "scheduler": "sampler",
    "sampler_name": "sampler",
    "num_outputs": "num_images",
    "batch_size": "num_images",
    "num_images_per_prompt": "num_images",
    "init_image": "image",
    "image_url": "image",
    "init_images": "image",
    "prompt_strength": "strength",
    "denoising_strength": "strength",
    "mask_image": "mask",
    "mask_url": "mask",
}
"""Other workers' names for a field -> ours. `init_images` is a list of one picture."""

PRIVATE = frozenset({"prompt", "negative_prompt", "image", "mask"})
"""Fields whose values never appear in an error, because errors are logged."""

Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE, multiple_of=8)]
Name = Annotated[str, Field(min_length=1, max_length=100)]


class Fields(BaseModel):
    """A job's input by canonical names, JSON's types taken as they are: "25" and true are no numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: str = Field(min_length=1, max_length=8_000)
    negative_prompt: str = Field("", max_length=8_000)
    uid: str | None = Field(None, min_length=1, max_length=128)
    steps: int = Field(25, ge=1, le=150)
    scale: float = Field(7.5, ge=0, le=50)
    do_scale: bool = True
    seed: int | None = Field(None, ge=-1, le=MAX_SEED)
    sampler: Name | None = None
    schedule: Name | None = None
    width: Side | None = None
    height: Side | None = None
    num_images: int = Field(1, ge=1, le=16)
    image: str | None = Field(None, min_length=1)
    strength: float = Field(0.8, gt=0, le=1)
    mask: str | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    preview: bool = False


NULLABLE = frozenset({"seed", "image", "mask"})
"""Fields where null means what leaving the field out means."""

KNOWN_NAMES = (*Fields.model_fields, *ALIASES)


def shorten(value: object) -> str:
    """A value as an error shows it: at most about 60 characters of plain ASCII, whatever was sent."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**40 else "a number of more than 40 digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"


def described(field: str, value: object) -> str:
    """`shorten`, but for a private field only what kind of value it is."""
    if field in PRIVATE and isinstance(value, str):
        return f"a string of {len(value):,} characters"
    return shorten(value)


def unknown_field(name: object) -> str:
    """The words for a field that does not exist, with the nearest that does."""
    if not isinstance(name, str):
        return f"{shorten(name)}: field names are strings"
    near = difflib.get_close_matches(name[:64].lower(), KNOWN_NAMES, n=1)
    label = name if name.isidentifier() and len(name) <= 40 else shorten(name)
    return f"{label}: unknown field" + (f", did you mean {near[0]}?" if near else "")


def violations(error: ValidationError, written: dict[str, str]) -> dict[str, str]:
    """Each bad field -> what is wrong with it, under the name that the job used for it."""
    found: dict[str, str] = {}
    for details in error.errors(include_url=False, include_context=False):
        field = str(details["loc"][0])
        reason = _reason(field, details["type"], details["input"])
        found[field] = f"{written.get(field, field)}: {reason}"
    return found


def _reason(field: str, kind: str, value: Any) -> str:
    match kind:
        case "missing":
            return "is required"
        case "string_unicode":
            return "holds characters that are not valid Unicode (lone surrogates)"
        case "string_too_short":
            return "is empty"
        case "string_too_long":
            return f"has {len(value):,} characters, at most {_constraint(field, 'maxLength'):,} are allowed"
        case "string_type":
            wanted = "a string"
        case "bool_type":
            wanted = "true or false"
        case "literal_error":
            wanted = f"one of {', '.join(OUTPUT_FORMATS)}"
        case "multiple_of":
            wanted = f"a multiple of 8; the nearest are {value - value % 8} and {value - value % 8 + 8}"
        case "int_type":
            wanted = f"a whole number {_range(field)}"
        case _:  # a number out of its range, or no number at all
            whole = "whole " if _constraint(field, "type") == "integer" else ""
            wanted = f"a {whole}number {_range(field)}"
    return f"{described(field, value)} is not {wanted}"


@functools.cache
def _constraint(field: str, name: str) -> Any:
    """A limit by its JSON-schema name: the one place where pydantic shows plain and union types alike."""
    schema = Fields.model_json_schema()["properties"][field]
    return next((option[name] for option in (schema, *schema.get("anyOf", [])) if name in option), None)


def _range(field: str) -> str:
    low, above, high = (_constraint(field, name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    if above is not None:
        return f"over {_plain(above)} and up to {_plain(high)}"
    return f"from {_plain(low)} to {_plain(high)}"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
