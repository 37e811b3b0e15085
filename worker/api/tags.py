"""A job's adapters as tags of its prompts, as AUTOMATIC1111's web UI writes and reads them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from sd_core.additions import Lora
from sd_core.errors import InvalidRequest
from sd_core.nested import MAX_PROMPT
from sd_core.request import Request
from sd_core.text.prompt import A1111
from sd_core.text.tags import read_tags

R = TypeVar("R", bound=Request)


def with_tags(request: R) -> R:
    """The same job, whose adapters are named by its prompts instead of its field `loras`; itself if they cannot be."""
    if not request.loras or request.prompt_syntax != A1111:
        return request
    tags = "".join(map(_tag, request.loras))
    hires = request.hires
    if hires is not None and hires.prompt is not None:
        hires = replace(hires, prompt=hires.prompt + tags)
    tagged = replace(request, prompt=request.prompt + tags, loras=(), hires=hires)
    prompts = [tagged.prompt, *([] if hires is None or hires.prompt is None else [hires.prompt])]
    return tagged if all(_names(prompt, request.loras) for prompt in prompts) else request


def _tag(lora: Lora) -> str:
    text = lora.weight if lora.text_weight is None else lora.text_weight
    return f"<lora:{lora.name}:{text}>" if text == lora.weight else f"<lora:{lora.name}:{text}:{lora.weight}>"


def _names(prompt: str, loras: Sequence[Lora]) -> bool:
    """Whether the prompt is short enough, and its last tags mean just these adapters."""
    try:
        tags = read_tags(prompt, "prompt").tags[-len(loras) :]
    except InvalidRequest:  # a name with a colon, for example
        return False
    read = [(tag.name, tag.unet, tag.text, tag.rank, tag.blocks) for tag in tags]
    wanted = [(lora.name, lora.weight, lora.completed.text_weight, None, None) for lora in loras]
    return len(prompt) <= MAX_PROMPT and read == wanted
