"""Textual inversions: files of input vectors that stand for a word of a prompt, in every layout that is in use.

| layout | names of its tensors |
|---|---|
| A1111's and the original, `.pt` | `string_to_param.*` |
| diffusers', `.bin` or `.safetensors` | the word itself, such as `<cat-toy>` |
| kohya's, `.safetensors` | `emb_params` |
| for SDXL | `clip_l`, which is for this text encoder, and `clip_g` |
| a list of dictionaries, `.pt` | any; their vectors follow one another |
| a LoRA that brings its words | `bundle_emb.NAME.string_to_param.*` or `bundle_emb.NAME.clip_l` |
| a picture, PNG or WebP | none: see `embedding_picture` |
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sd_core.errors import ModelError
from sd_core.formats.embedding_picture import read_picture
from sd_core.formats.files import TensorFile, first_bytes
from sd_core.formats.keys import show, show_some
from sd_core.formats.unpickle import open_checkpoint
from sd_core.work import Embedding

MAX_BYTES = 2**26
"""The largest embeddings, 75 vectors in float32 with an optimizer's state, have less than a megabyte."""

_PICTURES = (b"\x89PNG", b"RIFF")
_A1111 = "string_to_param."
_LISTED = re.compile(r"\d+\.")
_BUNDLED = re.compile(r"bundle_emb\.(.+)\.(string_to_param\.[^.]*|clip_l)")


def load_embedding(path: Path) -> Embedding:
    """The embedding of a file, float32 on the CPU: named as the file is, then as the file itself calls it.

    Pickled files are read by the reader that runs nothing of what is in them. Raises `ModelError` that names the file
    if it is missing, damaged, or of another kind.
    """
    head = first_bytes(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(f"{path} has {size:,} bytes: it is not an embedding")
    if head.startswith(_PICTURES):
        word, vectors = read_picture(path)
        vectors = _checked(vectors, path, "its tensor")
    else:
        with open_checkpoint(path) as file:
            word, stored = _chosen(file)
            vectors = torch.cat([_vectors(file, name) for name in stored])
    names = (path.stem,) if word is None else (path.stem, word)
    return Embedding(names, hashlib.sha256(path.read_bytes()).hexdigest(), vectors)


def bundled_embeddings(file: TensorFile) -> list[Embedding]:
    """The embeddings that a LoRA's file brings along, by the names it gives them; usually none.

    Raises `ModelError` as `load_embedding` does.
    """
    embeddings = []
    for stored in file.tensors:
        if match := _BUNDLED.fullmatch(stored):
            vectors = _vectors(file, stored)
            digest = hashlib.sha256(vectors.numpy().tobytes()).hexdigest()
            embeddings.append(Embedding((match.group(1),), digest, vectors))
    return embeddings


def _chosen(file: TensorFile) -> tuple[str | None, Sequence[str]]:
    """The word that the file itself has for its vectors, if any, and the names of the tensors that hold them."""
    names = list(file.tensors)
    params = [name for name in names if name.startswith(_A1111)]
    if len(params) == 1:
        return None, params
    for known in ("emb_params", "clip_l"):
        if known in names:
            return None, [known]
    if names and all(_LISTED.match(name) for name in names):
        return None, names
    if len(names) == 1 and "clip_g" not in names:
        return names[0], names
    raise ModelError(f"{file.path} is not an embedding for this family of models; its tensors are {show_some(names)}")


def _vectors(file: TensorFile, name: str) -> Tensor:
    """A tensor's vectors (n, width), n at least 1, float32."""
    stored = file.tensors[name]
    if not stored.dtype.is_floating_point or len(stored.shape) not in (1, 2):
        raise ModelError(
            f"{file.path}: {show(name)} of {stored.dtype} {list(stored.shape)} is not vectors of an embedding"
        )
    return _checked(file.read(name).float(), file.path, show(name))


def _checked(vectors: Tensor, path: Path, name: str) -> Tensor:
    """Vectors (n, width), n at least 1, of a tensor that may be a single one."""
    if vectors.dim() not in (1, 2) or not vectors.numel():
        raise ModelError(f"{path}: {name} of shape {list(vectors.shape)} is not vectors of an embedding")
    if not vectors.isfinite().all():
        raise ModelError(f"{path}: {name} holds infinities or not-a-numbers")
    return vectors[None] if vectors.dim() == 1 else vectors
