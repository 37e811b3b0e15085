"""What a job's images need from files of the volume: found when it is submitted, read on the host before they begin."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from sd_core.catalogue import Kind
from sd_core.formats.upscaler import load_upscaler
from sd_core.models.rrdbnet import RRDBNet
from sd_core.nested import UPSCALERS
from sd_core.networks import Guide
from sd_core.pipeline.embeddings import vocabulary_of
from sd_core.pipeline.guides import guides_of
from sd_core.pipeline.image_prompts import Reference, references_of
from sd_core.pipeline.loras import NO_LORAS, Loras, loras_of
from sd_core.pipeline.model import StableDiffusion
from sd_core.pipeline.once import Once
from sd_core.request import Request
from sd_core.text.vocabulary import Vocabulary
from sd_core.volume import Library
from sd_core.work import UNATTACHED, Attachments, HostTask

T = TypeVar("T")
Load = Callable[[], T]


@dataclass(frozen=True, eq=False)
class Loaded:
    """What was read for a job. Without a `vocabulary`, prompts are read with the model's own."""

    vocabulary: Vocabulary | None = None
    upscaler: RRDBNet | None = None
    loras: Loras = NO_LORAS
    attached: Attachments = UNATTACHED
    guides: tuple[Guide, ...] = ()
    references: tuple[Reference, ...] = ()

    def attached_to(self, run: int) -> Attachments:
        """What is attached to the UNet in the run of this index."""
        return replace(self.attached, adapters=self.loras.of(run).unet)


NOTHING = Loaded()


@dataclass(frozen=True)
class Needs:
    """How to read each thing that the images of a job need, on a thread that may block; None for what they do not."""

    vocabulary: Load[Vocabulary] | None = None
    upscaler: Load[RRDBNet] | None = None
    guides: Load[tuple[Guide, ...]] | None = None
    references: Load[tuple[Reference, ...]] | None = None
    loras: Load[Loras] | None = None

    @classmethod
    def of(cls, request: Request, model: StableDiffusion, library: Library) -> "Needs":
        """Find the files that a request names, without reading them. Raises `InvalidRequest` that names the field."""
        return cls(
            vocabulary=vocabulary_of(model, library),
            upscaler=_upscaler(request, model, library),
            guides=guides_of(request, model, library),
            references=references_of(request, model, library),
            loras=loras_of(request, model, library),
        )

    @property
    def is_large(self) -> bool:
        """Whether it may take seconds to read: embeddings alone are small."""
        return replace(self, vocabulary=None) != NONE

    def loading(self) -> "Loading":
        """What reads all of it, once for all images of a job."""
        return Loading(None if self == NONE else Once(self._load), self.is_large)

    def _load(self) -> Loaded:
        return Loaded(
            vocabulary=self.vocabulary and self.vocabulary(),
            upscaler=self.upscaler and self.upscaler(),
            guides=() if self.guides is None else self.guides(),
            references=() if self.references is None else self.references(),
            loras=self.loras() if self.loras else NO_LORAS,
        )


NONE = Needs()


@dataclass(frozen=True)
class Loading:
    """Reads what a job needs when the first of its images begins."""

    load: Load[Loaded] | None = None
    is_large: bool = False

    def loaded(self) -> Generator[HostTask, Loaded, Loaded]:
        """Have the host read it; yields nothing if there is nothing to read."""
        if self.load is None:
            return NOTHING
        return (yield HostTask(self.load, loads=self.is_large))


def _upscaler(request: Request, model: StableDiffusion, library: Library) -> Load[RRDBNet] | None:
    if request.hires is None or request.hires.upscaler in UPSCALERS:
        return None
    entry = library.find(Kind.UPSCALER, request.hires.upscaler, "hires.upscaler", UPSCALERS)
    return partial(library.get, entry, partial(load_upscaler, device=model.device), model.device)
