"""The embeddings of the volume as words of a model's prompts, and the label of those that prompts used."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from sd_core.catalogue import Entry, Kind
from sd_core.errors import InvalidRequest, ModelError
from sd_core.formats.embedding import load_embedding
from sd_core.pipeline.conditioning import Prompts
from sd_core.pipeline.model import StableDiffusion
from sd_core.text.vocabulary import Named, Unusable, Vocabulary
from sd_core.volume import Library
from sd_core.work import Embedding, Vector

LABEL = "TI hashes"
HASH_DIGITS = 12
PICTURES = (".png", ".webp")


def vocabulary_of(model: StableDiffusion, library: Library) -> Callable[[], Vocabulary] | None:
    """How to get the model's vocabulary with the library's embeddings, on a thread that may block: it reads new files.

    None without a folder for them. A file that cannot be used is an error of the job that names it.
    """
    return partial(_vocabulary, model, library) if library.has_folder(Kind.EMBEDDING) else None


def hashes_of(prompts: Iterable[Prompts], vocabulary: Vocabulary) -> dict[str, str]:
    """A1111's label of the embeddings that the prompts used: `name: hash, ...` in the order of their use."""
    names = {each.sha256: each.names[0] for each in vocabulary.embeddings.values() if isinstance(each, Embedding)}
    tokens = (token for each in prompts for chunk in each.chunks for token in chunk)
    used = dict.fromkeys(token.sha256 for token in tokens if isinstance(token, Vector))
    # A name keeps neither of the two marks by which the list is read.
    hashes = [f"{names[each].replace(':', '').replace(',', '')}: {each[:HASH_DIGITS]}" for each in used]
    return {LABEL: ", ".join(hashes)} if hashes else {}


def _vocabulary(model: StableDiffusion, library: Library) -> Vocabulary:
    entries = library.entries(Kind.EMBEDDING)
    if not entries:
        return model.vocabulary
    return library.derived(
        ("vocabulary", model.text_key),
        entries,
        lambda: model.with_embeddings([_embedding(library, entry) for entry in entries]).vocabulary,
    )


def _embedding(library: Library, entry: Entry) -> Named:
    try:
        return library.get(entry, _read)
    except InvalidRequest as error:  # it was deleted since it was found
        return Unusable((entry.path.stem,), str(error))


def _read(path: Path) -> Named:
    try:
        return load_embedding(path)
    except (ModelError, OSError) as error:
        # A picture without an embedding is not an error: it is an example image of another file's.
        names = () if path.suffix.lower() in PICTURES else (path.stem,)
        return Unusable(names, str(error).replace(str(path), path.name))
