"""The adapters of a job: those that its field `loras` lists, and those that tags of its prompts name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sd_core.adapters.apply import Adapter, Strength, applied_to_text, applied_to_unet
from sd_core.adapters.blocks import Blocks
from sd_core.additions import MAX_LORAS
from sd_core.catalogue import Entry, Kind
from sd_core.checks import shorten
from sd_core.errors import InvalidRequest, show_some
from sd_core.networks import Applied
from sd_core.pipeline.adapters import read_adapter
from sd_core.pipeline.model import StableDiffusion
from sd_core.request import Request
from sd_core.text.prompt import A1111
from sd_core.text.tags import Tag, read_tags
from sd_core.volume import Library
from sd_core.work import Embedding

LABEL = "Lora hashes"


@dataclass(frozen=True)
class Adapted:
    """What the adapters of one run add to its UNet and to its text encoder."""

    unet: tuple[Applied, ...] = ()
    text: tuple[Applied, ...] = ()


PLAIN = Adapted()


@dataclass(frozen=True)
class Loras:
    """What was read of a job's adapters: those of each run, what they bring along, and what is said about them."""

    runs: tuple[Adapted, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    warnings: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    def of(self, run: int) -> Adapted:
        """The adapters of the run of this index."""
        return self.runs[run] if self.runs else PLAIN


NO_LORAS = Loras()


@dataclass(frozen=True)
class _Named:
    """An adapter as a job names it, and the field that does."""

    name: str
    strength: Strength
    field: str


@dataclass(frozen=True)
class _Wanted:
    """An adapter whose file was found."""

    name: str
    entry: Entry
    strength: Strength


def loras_of(request: Request, model: StableDiffusion, library: Library) -> Callable[[], Loras] | None:
    """How to read the adapters of a request; None if it has none.

    One that is named several times acts as often, each time with its own strength; AUTOMATIC1111 takes the last one's
    for all of them. Raises `InvalidRequest` for an unknown file, for too many, and for a tag that cannot be read.
    """
    runs = []
    for name, prompt in _prompts(request):
        named = [*_of_tags(request, name, prompt), *_of_field(request)]
        if len(named) > MAX_LORAS:
            raise InvalidRequest(f"{name}: with the field loras it names {len(named)} adapters; at most {MAX_LORAS}")
        found = [_Wanted(each.name, library.find(Kind.LORA, each.name, each.field), each.strength) for each in named]
        runs.append(_added_up(each for each in found if each.strength.unet or each.strength.text))
    return partial(_load, runs, model, library) if any(runs) else None


def _prompts(request: Request) -> list[tuple[str, str]]:
    """The prompt of each run, with its field's name: that of a hires pass is the first one's unless it has its own."""
    first = "prompt", request.prompt
    if request.hires is None:
        return [first]
    return [first, first if request.hires.prompt is None else ("hires.prompt", request.hires.prompt)]


def _of_tags(request: Request, field: str, prompt: str) -> list[_Named]:
    if request.prompt_syntax != A1111:
        return []
    return [
        _Named(tag.name, Strength(tag.unet, tag.text, _blocks(tag, field), tag.rank), f"{field}: <lora>")
        for tag in read_tags(prompt, field).tags
    ]


def _blocks(tag: Tag, field: str) -> Blocks | None:
    try:
        return None if tag.blocks is None else Blocks.parse(tag.blocks)
    except ValueError as error:
        raise InvalidRequest(f"{field}: <lora:{shorten(tag.name)}>: lbw {error}") from None


def _of_field(request: Request) -> list[_Named]:
    return [
        _Named(
            lora.name,
            Strength(lora.weight, lora.weight if lora.text_weight is None else lora.text_weight),
            f"loras[{index}].name",
        )
        for index, lora in enumerate(request.loras)
    ]


def _added_up(wanted: Iterable[_Wanted]) -> list[_Wanted]:
    """One entry for each file that is used in one way; its strengths add up."""
    by_use: dict[object, _Wanted] = {}
    for each in wanted:
        use, strength = (each.entry.path, each.strength.blocks, each.strength.rank), each.strength
        if use in by_use:
            before = by_use[use].strength
            strength = replace(strength, unet=before.unet + strength.unet, text=before.text + strength.text)
        by_use[use] = replace(by_use.get(use, each), strength=strength)
    return list(by_use.values())


def _load(runs: Sequence[Sequence[_Wanted]], model: StableDiffusion, library: Library) -> Loras:
    wanted = {each.entry.path: each for run in runs for each in run}
    adapters = {path: _adapter(each.entry, model, library) for path, each in wanted.items()}
    return Loras(
        tuple(_adapted([(adapters[each.entry.path], each.strength) for each in run]) for run in runs),
        tuple(embedding for adapter in adapters.values() for embedding in adapter.embeddings),
        tuple(_unused(wanted[path].entry, adapter.ignored) for path, adapter in adapters.items() if adapter.ignored),
        _labels({wanted[path].name: adapter.label for path, adapter in adapters.items()}),
    )


def _adapter(entry: Entry, model: StableDiffusion, library: Library) -> Adapter:
    def read(path: Path) -> Adapter:
        networks = model.networks
        return read_adapter(path, networks.unet, networks.text_encoder, model.device, networks.unet.dtype)

    return library.get(entry, read, (model.unet_key, model.text_key))


def _adapted(adapters: Sequence[tuple[Adapter, Strength]]) -> Adapted:
    in_unet = [applied_to_unet(adapter, strength) for adapter, strength in adapters]
    in_text = [applied_to_text(adapter, strength) for adapter, strength in adapters]
    return Adapted(
        tuple(each for each in in_unet if each is not None), tuple(each for each in in_text if each is not None)
    )


def _unused(entry: Entry, tensors: Sequence[str]) -> str:
    return f"the {entry.kind} {entry.file_name!r}: {len(tensors)} of its tensors did nothing: {show_some(tensors)}"


def _labels(hashes: Mapping[str, str]) -> dict[str, str]:
    """AUTOMATIC1111's label of the adapters that were used. A name keeps neither mark by which the list is read."""
    known = [f"{name.replace(':', '').replace(',', '')}: {value}" for name, value in hashes.items() if value]
    return {LABEL: ", ".join(known)} if known else {}
